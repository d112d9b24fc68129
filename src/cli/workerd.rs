//! `kvasar workerd-config`: a configuration that runs a Worker, bound to namespaces at a location, under workerd as it is.
//!
//! One external service per binding, since workerd tells namespaces apart by nothing but headers that it is told to add (worker-binding 3).
//! [`config`] is also what `kvasar dev --worker` runs.

use std::{
    net::SocketAddr,
    path::{Component, Path, PathBuf},
    str::FromStr,
};

use clap::Args;

use crate::{
    config::host_and_port,
    error::{Error, Result},
    kv::NamespaceId,
    wire,
};

/// Print a workerd configuration that binds a Worker to namespaces at a location
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// The binding port of a location, HOST:PORT
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7711", value_parser = location)]
    pub location: String,
    /// A binding: the name that the Worker uses, and the id of the namespace. May be given several times. Beside it the Worker finds NAME_HTTP, for
    /// requests with headers of its own, such as kvasar-at-least
    #[arg(long = "binding", value_name = "NAME=NAMESPACE_ID", required = true)]
    pub bindings: Vec<Binding>,
    /// The Worker, one ES module [default: a small one that reads, writes and lists]
    #[arg(long, value_name = "FILE.js")]
    pub worker: Option<PathBuf>,
    /// The token that workerd sends for the Worker; it is written into the configuration
    #[arg(long, env = "CLOUDFLARE_API_TOKEN", hide_env_values = true)]
    pub token: String,
    /// Where the Worker listens
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8787")]
    pub listen: SocketAddr,
    /// The date whose behaviour of the Workers runtime the Worker gets
    #[arg(long, value_name = "DATE", default_value = COMPATIBILITY_DATE, value_parser = date)]
    pub compatibility_date: String,
    /// Write the configuration to this file instead of printing it; the Worker is found from there
    #[arg(long, short, value_name = "FILE.capnp")]
    pub output: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  kvasar workerd-config --binding KV=0f2ac74b498b48028cb68387c421e279 > config.capnp && npx workerd serve config.capnp
  kvasar workerd-config --location 127.0.0.1:7712 --binding KV=0f2ac74b498b48028cb68387c421e279 \\
      --worker worker.js --output config.capnp";

/// What the name of a binding for plain requests ends with, beside that of its KV binding.
const REQUESTS_SUFFIX: &str = "_HTTP";

/// Old enough for every workerd that one is likely to have.
pub const COMPATIBILITY_DATE: &str = "2025-09-01";

/// A name in the Worker's `env`, and the namespace behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    pub name: String,
    pub namespace: NamespaceId,
}

impl FromStr for Binding {
    type Err = Error;

    fn from_str(text: &str) -> Result<Binding> {
        let (name, namespace) = text.split_once('=').ok_or_else(|| {
            Error::bad_request(format!(
                "'{text}' is not NAME=NAMESPACE_ID, for example KV=0f2ac74b498b48028cb68387c421e279"
            ))
        })?;
        let starts_well = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_' || c == '$');
        if !starts_well || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '$') {
            return Err(Error::bad_request(format!("'{name}' is not a name in JavaScript, such as KV")));
        }
        Ok(Binding { name: name.to_owned(), namespace: namespace.parse()? })
    }
}

/// What a workerd process is to run.
pub struct Setup<'a> {
    /// The binding port that it asks, `host:port`.
    pub location: &'a str,
    pub token: &'a str,
    pub bindings: &'a [Binding],
    /// The Worker's path as the configuration's folder sees it (see [`path_from`]); `None` runs a sample.
    pub worker: Option<&'a str>,
    pub listen: &'a str,
    pub compatibility_date: &'a str,
}

/// The configuration, in the text form that `workerd serve` takes.
pub fn config(setup: &Setup<'_>) -> String {
    let module = match setup.worker {
        Some(path) => format!("embed {}", quoted(path)),
        None => quoted(SAMPLE),
    };
    let service = |binding: &Binding| quoted(&format!("kv-{}", binding.name));
    // A KV binding sends no headers of the Worker's; what it says by headers goes to the same service as plain requests.
    let requests = |binding: &Binding| format!("{}{REQUESTS_SUFFIX}", binding.name);
    let is_free = |name: &str| setup.bindings.iter().all(|other| other.name != name);
    let kv = setup
        .bindings
        .iter()
        .map(|binding| format!("        ( name = {}, kvNamespace = {} )", quoted(&binding.name), service(binding)));
    let plain =
        setup.bindings.iter().filter(|binding| is_free(&requests(binding))).map(|binding| {
            format!("        ( name = {}, service = {} )", quoted(&requests(binding)), service(binding))
        });
    let bindings: Vec<String> = kv.chain(plain).collect();
    let services: String = setup
        .bindings
        .iter()
        .map(|binding| {
            format!(
                "    ( name = {service}, external = ( address = {address}, http = ( style = host, injectRequestHeaders = [\n\
                 \x20     ( name = \"Authorization\", value = {authorization} ),\n\
                 \x20     ( name = \"{header}\", value = \"{namespace}\" ),\n\
                 \x20     ( name = \"CF-KV-FLPROD-405\" ) ] ) ) ),\n",
                service = service(binding),
                address = quoted(setup.location),
                authorization = quoted(&format!("Bearer {}", setup.token)),
                header = wire::NAMESPACE,
                namespace = binding.namespace,
            )
        })
        .collect();
    format!(
        "using Workerd = import \"/workerd/workerd.capnp\";\n\
         \n\
         const config :Workerd.Config = (\n\
         \x20 services = [\n\
         \x20   ( name = \"main\", worker = (\n\
         \x20     modules = [ ( name = \"worker.js\", esModule = {module} ) ],\n\
         \x20     compatibilityDate = {date},\n\
         \x20     bindings = [\n{bindings} ] ) ),\n\
         {services}\
         \x20   # What `fetch` in a Worker may reach; without this, workerd keeps it from private and local addresses.\n\
         \x20   ( name = \"internet\", network = ( allow = [\"public\", \"private\"], tlsOptions = ( trustBrowserCas = true ) ) ),\n\
         \x20 ],\n\
         \x20 sockets = [ ( name = \"http\", address = {listen}, http = (), service = \"main\" ) ]\n\
         );\n",
        date = quoted(setup.compatibility_date),
        bindings = bindings.join(",\n"),
        listen = quoted(setup.listen),
    )
}

/// Reads, writes, deletes and lists by path.
const SAMPLE: &str = r#"export default {
  async fetch(request, env) {
    const kv = Object.values(env)[0];
    const key = decodeURIComponent(new URL(request.url).pathname.slice(1));
    if (key === "") return Response.json(await kv.list());
    switch (request.method) {
      case "PUT": await kv.put(key, request.body ?? ""); return new Response(null, { status: 204 });
      case "DELETE": await kv.delete(key); return new Response(null, { status: 204 });
      case "GET": {
        const { value, metadata, cacheStatus } = await kv.getWithMetadata(key, "stream");
        if (value === null) return new Response("not found\n", { status: 404 });
        return new Response(value, { headers: { "x-metadata": JSON.stringify(metadata), "x-cache-status": cacheStatus } });
      }
      default: return new Response("GET, PUT or DELETE\n", { status: 405 });
    }
  }
};
"#;

/// A text of Cap'n Proto's schema language, whatever it holds.
fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            c if c.is_ascii_control() => quoted.push_str(&format!("\\x{:02x}", c as u32)),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// The way from a folder to a file, for `embed`, which knows no absolute paths. Both have to exist.
pub fn path_from(folder: &Path, file: &Path) -> Result<String> {
    let real = |path: &Path| {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        path.canonicalize().map_err(|e| Error::bad_request(format!("finding {}", path.display())).with_source(e))
    };
    let (folder, file) = (real(folder)?, real(file)?);
    let shared = folder.components().zip(file.components()).take_while(|(a, b)| a == b).count();
    let ups = folder.components().skip(shared).map(|_| Component::ParentDir);
    let way: PathBuf = ups.chain(file.components().skip(shared)).collect();
    way.into_os_string().into_string().map_err(|path| {
        Error::bad_request(format!("the path {} is not UTF-8, which workerd's configuration has to be", path.display()))
    })
}

/// workerd's binary: on PATH, or where npm puts it, here or in a folder above.
pub fn find_workerd() -> Result<PathBuf> {
    let here = std::env::current_dir().map_err(|e| Error::internal("finding the current folder").with_source(e))?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    find_workerd_in(std::env::split_paths(&path), &here).ok_or_else(|| {
        Error::bad_request(
            "there is no workerd on PATH or in node_modules/.bin; install it here with: npm install --save-dev workerd",
        )
    })
}

fn find_workerd_in(path: impl Iterator<Item = PathBuf>, here: &Path) -> Option<PathBuf> {
    let installed = here.ancestors().map(|folder| folder.join("node_modules/.bin"));
    path.chain(installed).map(|folder| folder.join("workerd")).find(|file| file.is_file())
}

fn location(text: &str) -> Result<String, String> {
    if host_and_port(text) {
        Ok(text.to_owned())
    } else {
        Err("it has to be HOST:PORT, such as 127.0.0.1:7711".to_owned())
    }
}

fn date(text: &str) -> Result<String, String> {
    let shape: String = text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    if shape == "0000-00-00" { Ok(text.to_owned()) } else { Err("it has to be a date such as 2025-09-01".to_owned()) }
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let folder = match &arguments.output {
        Some(output) => output.parent().unwrap_or(Path::new("")),
        None => Path::new(""),
    };
    let worker = match &arguments.worker {
        Some(file) => Some(path_from(folder, file)?),
        None => None,
    };
    let text = config(&Setup {
        location: &arguments.location,
        token: &arguments.token,
        bindings: &arguments.bindings,
        worker: worker.as_deref(),
        listen: &arguments.listen.to_string(),
        compatibility_date: &arguments.compatibility_date,
    });
    match &arguments.output {
        Some(output) => write_private(output, &text)
            .map_err(|e| Error::bad_request(format!("writing {}", output.display())).with_source(e)),
        None => super::show(&text),
    }
}

/// The configuration holds a token, so only its owner may read it, before the first byte of it is there; also when there was a file already.
fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    #[cfg(unix)]
    if file.metadata()?.is_file() {
        // A mode at opening is for new files alone, and a device such as `/dev/stdout` keeps its own.
        file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    }
    std::io::Write::write_all(&mut file, text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn a_configuration_is_its_owners_alone_also_over_an_open_file() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("config.capnp");
        std::fs::write(&path, "a longer text that was there").expect("it is written");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).expect("it is opened up");
        for text in ["first", "second"] {
            write_private(&path, text).expect("it is written");
            assert_eq!(std::fs::read_to_string(&path).expect("it is read"), text);
            let mode = std::fs::metadata(&path).expect("it is there").permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }

    #[test]
    fn a_configuration_names_each_binding_its_namespace_and_its_token() {
        let bindings = ["KV=00000000000000000000000000000001".parse().expect("a binding")];
        let text = config(&Setup {
            location: "127.0.0.1:7711",
            token: "tok\"en",
            bindings: &bindings,
            worker: Some("../worker.js"),
            listen: "127.0.0.1:8787",
            compatibility_date: COMPATIBILITY_DATE,
        });
        let expected = r#"using Workerd = import "/workerd/workerd.capnp";

const config :Workerd.Config = (
  services = [
    ( name = "main", worker = (
      modules = [ ( name = "worker.js", esModule = embed "../worker.js" ) ],
      compatibilityDate = "2025-09-01",
      bindings = [
        ( name = "KV", kvNamespace = "kv-KV" ),
        ( name = "KV_HTTP", service = "kv-KV" ) ] ) ),
    ( name = "kv-KV", external = ( address = "127.0.0.1:7711", http = ( style = host, injectRequestHeaders = [
      ( name = "Authorization", value = "Bearer tok\"en" ),
      ( name = "kvasar-namespace", value = "00000000000000000000000000000001" ),
      ( name = "CF-KV-FLPROD-405" ) ] ) ) ),
    # What `fetch` in a Worker may reach; without this, workerd keeps it from private and local addresses.
    ( name = "internet", network = ( allow = ["public", "private"], tlsOptions = ( trustBrowserCas = true ) ) ),
  ],
  sockets = [ ( name = "http", address = "127.0.0.1:8787", http = (), service = "main" ) ]
);
"#;
        assert_eq!(text, expected);
    }

    #[test]
    fn texts_are_quoted_so_that_nothing_gets_out_of_them() {
        assert_eq!(quoted("a\"b\\c\nd\te\0"), r#""a\"b\\c\nd\x09e\x00""#);
        assert_eq!(quoted("gr\u{fc}n"), "\"gr\u{fc}n\"");
    }

    #[test]
    fn a_binding_is_a_javascript_name_and_an_id() {
        let check = |text: &str, expected: &str| {
            let message = text.parse::<Binding>().expect_err("it is refused").message;
            assert!(message.contains(expected), "{message}");
        };
        check("KV", "is not NAME=NAMESPACE_ID");
        check("K-V=00000000000000000000000000000001", "is not a name in JavaScript");
        check("1KV=00000000000000000000000000000001", "is not a name in JavaScript");
        check("KV=1", "32 hexadecimal digits");
        assert!("$_1=0000000000000000000000000000000F".parse::<Binding>().is_ok());
    }

    #[test]
    fn a_worker_is_found_from_the_folder_of_the_configuration() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let (a, b) = (root.path().join("a"), root.path().join("b/c"));
        std::fs::create_dir_all(&a).expect("a folder");
        std::fs::create_dir_all(&b).expect("a folder");
        let worker = a.join("worker.js");
        std::fs::write(&worker, "").expect("a file");
        assert_eq!(path_from(&a, &worker).expect("it exists"), "worker.js");
        assert_eq!(path_from(&b, &worker).expect("it exists"), "../../a/worker.js");
        assert!(path_from(&b, &a.join("none.js")).expect_err("there is none").to_string().contains("none.js"));
    }

    #[test]
    fn workerd_is_found_on_the_path_first_and_then_in_the_folders_above() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let (bin, above, here) = (root.path().join("bin"), root.path().join("p"), root.path().join("p/q/r"));
        let installed = above.join("node_modules/.bin");
        for folder in [&bin, &installed, &here] {
            std::fs::create_dir_all(folder).expect("a folder");
        }
        assert_eq!(find_workerd_in([bin.clone()].into_iter(), &here), None);
        std::fs::write(installed.join("workerd"), "").expect("a file");
        assert_eq!(find_workerd_in([bin.clone()].into_iter(), &here), Some(installed.join("workerd")));
        std::fs::write(bin.join("workerd"), "").expect("a file");
        assert_eq!(find_workerd_in([bin.clone()].into_iter(), &here), Some(bin.join("workerd")));
    }
}

//! The wiring: which parts a process consists of, and how they are joined.
//!
//! A read walks `tiers` downwards to the origin, a write sinks the same way. Every role is made here, from settings and components; `kvasar serve`
//! and `kvasar dev` differ only in the configuration that they bring.

pub mod stores;

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

use crate::{
    api::{
        admin::Admin,
        auth::{self, Auth},
        binding::Binding,
        budget::Budget,
        connection::Deadlines,
        rest::Rest,
        server::{self, ServerContext, ServerLimits},
        threads::Threads,
    },
    cache::{
        remote::{Remote, RemoteSettings},
        tier::{Tier, TierSettings},
    },
    clock::{self, Clock},
    config::{self, Config, RestOn, Role, Upstream},
    error::{Error, Kind, Result},
    kv::{Account, AccountId, Backend, Control, List, NamespaceId, NewToken, Rights, Source, Writer, reserved},
    limits,
    metrics::{Door, Metrics},
    origin::{Origin, OriginSettings},
    purge::feed::FeedSettings,
    store::disk::DiskStore,
};

/// Whether parts of one process ask each other directly, or over sockets as if each were elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    Direct,
    Sockets,
}

/// A process at work.
pub struct Running {
    pub rest: Option<SocketAddr>,
    pub admin: Option<SocketAddr>,
    pub origin_listen: Option<SocketAddr>,
    pub tiers: Vec<RunningTier>,
    /// The accounts that the origin of this process made at its first start.
    pub accounts: Vec<Credentials>,
    pub origin: Option<Arc<Origin>>,
    context: ServerContext,
    /// Those that serve the binding ports. They also carry connections upstream, which others use: so they end last.
    threads: Arc<Threads>,
    ready: Arc<AtomicBool>,
    shutdown_deadline: Duration,
}

pub struct RunningTier {
    pub role: Role,
    pub name: String,
    pub listen: Option<SocketAddr>,
}

/// What opens an account; kept beside the data, for its owner alone.
#[derive(Clone, Serialize, Deserialize)]
pub struct Credentials {
    pub name: String,
    pub account_id: AccountId,
    pub token: String,
    /// Whether this start made them.
    #[serde(skip)]
    pub new: bool,
}

/// Starts everything that the configuration names. On an error nothing is left running.
pub async fn start(config: &Config, links: Links, clock: Arc<dyn Clock>) -> Result<Running> {
    let limits = ServerLimits {
        connections: config.limits.connections,
        requests_in_flight: config.limits.requests_in_flight,
        deadlines: Deadlines {
            head: config.limits.head_deadline,
            body_idle: config.limits.body_idle_deadline,
            idle: config.limits.idle_deadline,
        },
    };
    let running = Running {
        rest: None,
        admin: None,
        origin_listen: None,
        tiers: Vec::new(),
        accounts: Vec::new(),
        origin: None,
        context: ServerContext::new(Arc::clone(&clock), limits),
        threads: Arc::new(Threads::start()?),
        ready: Arc::default(),
        shutdown_deadline: config.server.shutdown_deadline,
    };
    let parts = Parts {
        buffers: Budget::new(config.limits.buffered),
        metrics: Arc::new(Metrics::default()),
        clock,
        config,
        links,
        running,
        backends: HashMap::new(),
    };
    parts.start().await
}

/// What is being joined.
struct Parts<'a> {
    config: &'a Config,
    links: Links,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    buffers: Arc<Budget>,
    running: Running,
    /// Tiers of this process by name, for those that ask them and for REST.
    backends: HashMap<String, (Arc<dyn Backend>, Arc<Auth>)>,
}

impl Parts<'_> {
    async fn start(mut self) -> Result<Running> {
        match self.join().await {
            Ok(()) => {
                self.running.ready.store(true, Ordering::Release);
                Ok(self.running)
            }
            Err(error) => {
                self.running.stop().await;
                Err(error)
            }
        }
    }

    async fn join(&mut self) -> Result<()> {
        if let Some(settings) = &self.config.origin {
            self.origin(settings).await?;
        }
        for settings in &self.config.tiers {
            self.tier(settings).await?;
        }
        if let Some(settings) = &self.config.rest {
            self.rest(settings).await?;
        }
        if let Some(address) = self.config.server.admin {
            self.admin(address).await?;
        }
        Ok(())
    }

    async fn origin(&mut self, settings: &config::Origin) -> Result<()> {
        let folder = settings.data.join("store");
        let store = Arc::new(DiskStore::open(&folder, settings.store_cache)?);
        let origin_settings = OriginSettings {
            id: settings.id,
            namespaces_per_account: settings.namespaces_per_account,
            writes_per_key_per_second: settings.writes_per_key_per_second,
            push_bytes_max: usize::try_from(settings.push_size_max).unwrap_or(limits::PUSH_BYTES_MAX),
            feed: FeedSettings::default(),
            ..OriginSettings::default()
        };
        let origin = Origin::open(store, Arc::clone(&self.clock), origin_settings, self.metrics.origin()).await?;
        self.running.origin = Some(Arc::clone(&origin));
        self.watch_origin(&origin);
        for name in &self.config.accounts {
            let credentials = ensure_account(&origin, &settings.data, name, &*self.clock).await?;
            self.running.accounts.push(credentials);
        }
        let backend: Arc<dyn Backend> = origin;
        // An origin's own reads of its records are the latest whatever their age may be.
        let auth = Arc::new(self.auth(&backend, Duration::ZERO).beside_origin());
        if let Some(address) = settings.listen {
            self.running.origin_listen = Some(self.binding("origin", address, &backend, &auth).await?);
        }
        self.backends.insert(ORIGIN.to_owned(), (backend, auth));
        Ok(())
    }

    async fn tier(&mut self, settings: &config::Tier) -> Result<()> {
        let (upstream, upstream_name) = self.upstream(settings)?;
        let tier_settings = TierSettings {
            name: settings.name.clone(),
            cache_bytes: settings.cache,
            cache_share_max: settings.cache_share_max,
            stale_if_unreachable: settings.stale_if_unreachable,
            // What travels takes its trips, twice as many where the connection has to be made first.
            upstream_deadline: settings.upstream_deadline + settings.delay * 4,
            stale_after: STALE_AFTER + settings.delay * 4,
            refills: settings.refills,
            feed_interval: settings.feed_interval,
            feed: FeedSettings::default(),
        };
        let tier = Tier::new(upstream, upstream_name, Arc::clone(&self.clock), tier_settings);
        self.watch_cache(&tier);
        self.running.context.tasks.spawn(tier.clone().follow(self.running.context.shutdown.clone()));
        let backend: Arc<dyn Backend> = Arc::new(tier);
        let auth = Arc::new(self.auth(&backend, settings.control_max_age));
        let listen = match settings.listen {
            Some(address) => Some(self.binding(&settings.name, address, &backend, &auth).await?),
            None => None,
        };
        self.running.tiers.push(RunningTier { role: settings.role, name: settings.name.clone(), listen });
        self.backends.insert(settings.name.clone(), (backend, auth));
        Ok(())
    }

    /// What a tier asks: a part of this process, or a server elsewhere.
    fn upstream(&self, settings: &config::Tier) -> Result<(Arc<dyn Backend>, String)> {
        let (name, address) = match &settings.upstream {
            Upstream::Remote(address) => (address.clone(), Some(address.clone())),
            Upstream::Origin => (ORIGIN.to_owned(), self.running.origin_listen.map(|listen| listen.to_string())),
            Upstream::Tier(name) => {
                let tier = self.running.tiers.iter().find(|tier| tier.name == *name);
                (name.clone(), tier.and_then(|tier| tier.listen).map(|listen| listen.to_string()))
            }
        };
        let remote = matches!(settings.upstream, Upstream::Remote(_));
        if !remote && self.links == Links::Direct && settings.delay.is_zero() {
            let (backend, _) = self.backends.get(&name).ok_or_else(|| unknown_upstream(&settings.name, &name))?;
            return Ok((Arc::clone(backend), name));
        }
        let address = address.ok_or_else(|| {
            Error::bad_request(format!("tier {} asks {name} over a socket, but {name} does not listen", settings.name))
        })?;
        let secret = self.config.cluster_secret.as_ref().ok_or_else(|| {
            Error::bad_request(format!("tier {} asks {address}, for which [cluster] needs a secret", settings.name))
        })?;
        let remote_settings = RemoteSettings {
            address: address.clone(),
            secret: secret.reveal().to_owned(),
            deadline: settings.upstream_deadline,
            concurrency: settings.upstream_concurrency,
            delay: settings.delay,
        };
        let metrics = self.metrics.tier(&settings.name);
        let remote = Remote::new(remote_settings, Arc::clone(&self.clock), metrics)?;
        Ok((Arc::new(remote), address))
    }

    async fn rest(&mut self, settings: &config::Rest) -> Result<()> {
        let on = match &settings.on {
            RestOn::Origin => ORIGIN,
            RestOn::Tier(name) => name,
        };
        let (backend, auth) = self.backends.get(on).ok_or_else(|| unknown_upstream("rest", on))?;
        let rest = Rest::new(Arc::clone(backend), Arc::clone(auth), Arc::clone(&self.clock), Arc::clone(&self.buffers));
        let (listener, address) = listen("REST", settings.listen).await?;
        server::spawn(listener, rest, "rest", &self.running.context, self.metrics.door(Door::Rest, "rest"));
        self.running.rest = Some(address);
        Ok(())
    }

    async fn admin(&mut self, address: SocketAddr) -> Result<()> {
        let (listener, address) = listen("health and metrics", address).await?;
        let admin = Admin::new(Arc::clone(&self.metrics), Arc::clone(&self.running.ready));
        // Whoever looks after the process must get in when clients have taken every place.
        let context = self.running.context.with_own_places();
        server::spawn(listener, admin, "admin", &context, self.metrics.door(Door::Admin, "admin"));
        self.running.admin = Some(address);
        Ok(())
    }

    async fn binding(
        &self,
        name: &str,
        address: SocketAddr,
        backend: &Arc<dyn Backend>,
        auth: &Arc<Auth>,
    ) -> Result<SocketAddr> {
        let (listener, address) = listen(name, address).await?;
        let binding = Binding::new(
            Arc::clone(backend),
            Arc::clone(auth),
            Arc::clone(&self.clock),
            Arc::clone(&self.buffers),
            self.metrics.tier(name),
        );
        // Apart from REST, whose large requests would keep reads waiting.
        let context = self.running.context.on(&self.running.threads);
        server::spawn(listener, binding, name, &context, self.metrics.door(Door::Binding, name));
        Ok(address)
    }

    fn auth(&self, backend: &Arc<dyn Backend>, max_age: Duration) -> Auth {
        let source: Arc<dyn Source> = Arc::clone(backend) as Arc<dyn Source>;
        let secret = self.config.cluster_secret.as_ref().map(config::Secret::reveal);
        Auth::new(source, Arc::clone(&self.clock), secret, max_age)
    }

    /// Keeps the figures of the origin's feed up to date.
    fn watch_origin(&self, origin: &Arc<Origin>) {
        let (feed, metrics) = (origin.feed().clone(), self.metrics.feed(ORIGIN));
        self.each_second(move || metrics.sends(feed.counts()));
    }

    /// Keeps the gauges of what a tier holds up to date.
    fn watch_cache(&self, tier: &Tier) {
        let (tier, metrics, feed_metrics) =
            (tier.clone(), self.metrics.tier(tier.name()), self.metrics.feed(tier.name()));
        self.each_second(move || {
            metrics.holds(tier.memory().entries() as u64, tier.memory().bytes());
            metrics.follows(tier.feed_age());
            feed_metrics.sends(tier.feed().counts());
        });
    }

    fn each_second(&self, look: impl Fn() + Send + 'static) {
        let (clock, shutdown) = (Arc::clone(&self.clock), self.running.context.shutdown.clone());
        self.running.context.tasks.spawn(async move {
            loop {
                look();
                tokio::select! {
                    () = clock.sleep(Duration::from_secs(1)) => {}
                    () = shutdown.cancelled() => return,
                }
            }
        });
    }
}

/// How long a read that could be answered stale waits for an upstream next door.
const STALE_AFTER: Duration = Duration::from_secs(1);

/// The name under which the origin stands among the parts; no tier may be called so.
const ORIGIN: &str = "origin";

impl Running {
    /// Stops accepting, finishes what is under way within the deadline, and closes the store.
    pub async fn stop(self) {
        self.ready.store(false, Ordering::Release);
        self.context.stop();
        // Those who follow it would hold their connections to the deadline.
        if let Some(origin) = &self.origin {
            origin.feed().close();
        }
        self.context.tasks.close();
        let finished = clock::within(&*self.context.clock, self.shutdown_deadline, self.context.tasks.wait()).await;
        if finished.is_err() {
            tracing::warn!(deadline = ?self.shutdown_deadline, "requests were still under way at the deadline; they are broken off");
        }
        self.threads.end();
        if let Some(origin) = self.origin {
            origin.close().await;
        }
    }
}

async fn listen(what: &str, address: SocketAddr) -> Result<(TcpListener, SocketAddr)> {
    let failed = |e| Error::bad_request(format!("listening on {address} for {what}")).with_source(e);
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

fn unknown_upstream(who: &str, name: &str) -> Error {
    Error::bad_request(format!("{who} names {name}, which is not a part of this process"))
}

/// The credentials of an account, made at its first start. An account that has lost its last token gets its first one back.
async fn ensure_account(origin: &Arc<Origin>, data: &Path, name: &str, clock: &dyn Clock) -> Result<Credentials> {
    let file = data.join("accounts").join(format!("{name}.json"));
    let (credentials, new) = match read_credentials(&file)? {
        Some(credentials) => (credentials, false),
        None => {
            let credentials = Credentials {
                name: name.to_owned(),
                account_id: AccountId::from_bytes(clock::random_bytes(clock)),
                token: auth::new_secret(clock),
                new: true,
            };
            write_credentials(&file, &credentials)?;
            (credentials, true)
        }
    };
    origin.ensure_account(&Account { id: credentials.account_id, name: name.to_owned() }).await?;
    let tokens = List { prefix: reserved::token_listings(credentials.account_id), limit: 1, cursor: None };
    if origin.list(NamespaceId::RESERVED, &tokens).await?.keys.is_empty() {
        let token = NewToken { name: "first".to_owned(), rights: Rights::Admin, namespaces: None, expires: None };
        let create = Control::CreateToken { hash: auth::hash(&credentials.token), token };
        origin.control(credentials.account_id, create).await?;
    }
    Ok(Credentials { new, ..credentials })
}

fn read_credentials(file: &Path) -> Result<Option<Credentials>> {
    let failed = |e: Box<dyn std::error::Error + Send + Sync>| {
        Error::internal(format!("reading the credentials in {}", file.display())).with_source(e)
    };
    match std::fs::read(file) {
        Ok(json) => serde_json::from_slice(&json).map(Some).map_err(|e| failed(e.into())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed(e.into())),
    }
}

/// Readable by the owner alone, and either whole or not there.
fn write_credentials(file: &Path, credentials: &Credentials) -> Result<()> {
    let failed = |e: Box<dyn std::error::Error + Send + Sync>| {
        Error::internal(format!("writing the credentials to {}", file.display())).with_source(e)
    };
    let folder: PathBuf = file.parent().map(Path::to_path_buf).unwrap_or_default();
    std::fs::create_dir_all(&folder).map_err(|e| failed(e.into()))?;
    // Temporary files are for their owner alone from the beginning.
    let mut temporary = tempfile::NamedTempFile::new_in(&folder).map_err(|e| failed(e.into()))?;
    serde_json::to_writer_pretty(&mut temporary, credentials).map_err(|e| failed(e.into()))?;
    temporary.as_file().sync_all().map_err(|e| failed(e.into()))?;
    temporary.persist(file).map_err(|e| failed(e.into()))?;
    Ok(())
}

/// A namespace of an account by its title, made if it is not there.
pub async fn ensure_namespace(origin: &Arc<Origin>, account: AccountId, title: &str) -> Result<crate::kv::Namespace> {
    let create = Control::CreateNamespace { title: title.to_owned(), jurisdiction: None, mode: None };
    match origin.control(account, create).await {
        Ok((crate::kv::Controlled::Namespace(namespace), _)) => Ok(namespace),
        Ok(_) => Err(Error::internal("making a namespace was answered with something else")),
        Err(error) if error.kind == Kind::NamespaceExists => find_namespace(origin, account, title).await,
        Err(error) => Err(error),
    }
}

async fn find_namespace(origin: &Arc<Origin>, account: AccountId, title: &str) -> Result<crate::kv::Namespace> {
    let mut cursor = None;
    loop {
        let list = List { prefix: reserved::namespaces(account), limit: crate::limits::LIST_PAGE_MAX, cursor };
        let page = origin.list(NamespaceId::RESERVED, &list).await?;
        for listed in page.keys {
            let record = listed.metadata.unwrap_or_default();
            let namespace: crate::kv::Namespace = serde_json::from_slice(&record)
                .map_err(|e| Error::internal("reading the record of a namespace").with_source(e))?;
            if namespace.title == title {
                return Ok(namespace);
            }
        }
        cursor = page.cursor;
        if cursor.is_none() {
            return Err(Error::new(Kind::NamespaceUnknown, format!("no namespace is called {title}")));
        }
    }
}

//! How a server has glibc's allocator work: with one arena for all threads.
//!
//! Unless told, glibc makes an arena for each thread that meets another in the allocator, and what is freed in one is of no use to the threads of
//! another. A cache whose entries come and go from all threads then takes up to twice its budget (docs/decisions/0003-cache-policy.md). The number of arenas
//! is read from the environment when a process starts, and from nowhere else without unsafe code: so a server starts itself anew with it.

/// What glibc reads the number of arenas from. Whoever starts the server may set it to another number.
const ARENAS: &str = "MALLOC_ARENA_MAX";

/// Starts the process anew with one arena, in its place and under its number, unless it was started with a number of arenas. Returns if that is not
/// possible or of no use.
pub fn use_one_arena() {
    if !cfg!(all(target_os = "linux", target_env = "gnu")) || std::env::var_os(ARENAS).is_some() {
        return;
    }
    let Ok(program) = std::env::current_exe() else { return };
    let mut arguments = std::env::args_os();
    let mut command = std::process::Command::new(program);
    if let Some(name) = arguments.next() {
        std::os::unix::process::CommandExt::arg0(&mut command, name);
    }
    command.args(arguments).env(ARENAS, "1");
    let error = std::os::unix::process::CommandExt::exec(&mut command);
    eprintln!("warning: starting anew with {ARENAS}=1: {error}; caches may take more memory than their budgets");
}

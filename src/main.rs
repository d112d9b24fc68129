//! Arguments to command to exit code; the rest is the library's.

use std::process::ExitCode;

use clap::Parser;
use kvasar::cli::{Arguments, allocator};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.command.is_server() {
        allocator::use_one_arena();
    }
    run(arguments)
}

#[tokio::main]
async fn run(arguments: Arguments) -> ExitCode {
    match arguments.command.run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

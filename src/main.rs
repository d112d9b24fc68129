//! Arguments to command to exit code; the rest is the library's.

use std::process::ExitCode;

use clap::Parser;
use kvasar::cli::Arguments;

#[tokio::main]
async fn main() -> ExitCode {
    match Arguments::parse().command.run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

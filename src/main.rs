//! The `gatepass` binary: hands over to the library's `cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    gatepass::cli::main()
}

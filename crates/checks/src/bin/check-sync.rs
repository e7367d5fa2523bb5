//! See `checks::check_sync`.

use std::process::ExitCode;

fn main() -> ExitCode {
    checks::check_sync()
}

//! See `checks::check_master`.

use std::process::ExitCode;

fn main() -> ExitCode {
    checks::check_master()
}

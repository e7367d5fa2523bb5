//! See `alerts::cli`.

fn main() -> std::process::ExitCode {
    alerts::cli::main()
}

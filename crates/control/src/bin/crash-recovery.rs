//! See `control::crash_recovery`.

fn main() -> control::Exit {
    control::crash_recovery::main()
}

//! See `control::audit`.

fn main() -> control::Exit {
    control::audit::main()
}

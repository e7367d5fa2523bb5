//! See `control::maintenance`.

fn main() -> control::Exit {
    control::maintenance::main()
}

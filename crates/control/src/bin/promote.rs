//! See `control::promote`.

fn main() -> control::Exit {
    control::promote::main()
}

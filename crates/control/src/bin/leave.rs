//! See `control::leave`.

fn main() -> control::Exit {
    control::leave::main()
}

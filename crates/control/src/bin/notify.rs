//! See `control::notify`.

fn main() -> control::Exit {
    control::notify::main()
}

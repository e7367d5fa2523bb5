//! See `control::peer`.

fn main() -> control::Exit {
    control::peer::main()
}

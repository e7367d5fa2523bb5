//! See `control::links`.

fn main() -> control::Exit {
    control::links::main()
}

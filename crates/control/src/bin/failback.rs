//! See `control::failback`.

fn main() -> control::Exit {
    control::failback::main()
}

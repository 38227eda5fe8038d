//! viprouted

fn main() {}

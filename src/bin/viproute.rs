//! viproute

fn main() {}

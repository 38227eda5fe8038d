//! viproutectl

fn main() {}

//! Manual pages and shell completions, made from the command lines themselves.

use std::fs::File;
use std::io;
use std::path::Path;

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;

use super::arguments::Arguments;
use crate::allocator;

/// System administration.
const SECTION: &str = "8";

/// Writes a manual page for viprouted, one for viproutectl and one for each of its verbs.
pub fn write(dir: &Path) -> io::Result<()> {
    write_page(dir, allocator::arguments::Arguments::command())?;
    // A page about `help` would say nothing.
    let mut tool = Arguments::command().disable_help_subcommand(true);
    tool.build();
    for verb in tool.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        write_page(dir, verb.clone())?;
    }
    write_page(dir, tool)
}

/// A verb is displayed as `viproutectl-VERB`.
fn write_page(dir: &Path, command: Command) -> io::Result<()> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name());
    let path = dir.join(format!("{name}.{SECTION}"));
    Man::new(command).section(SECTION).render(&mut File::create(path)?)
}

/// What a shell has to be told of viproutectl.
pub fn completions(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "viproutectl", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

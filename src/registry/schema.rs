//! The schema in which the registry's files are written.
//!
//! Plugin and daemon work on the same files and are replaced one after the other, under traffic. An earlier daemon
//! that finds a record of a later schema can't use it: it would take its VIP out of service. So a plugin keeps
//! writing the schema before until a viprouted of its own version has run in this boot, which says so in a file of its
//! own and rewrites what there is. From then on no earlier program is left to read it: the plugin was replaced first.

use std::io::Read;

use crate::model::AttachmentId;

use super::boot::{current_boot, write_text};
use super::file;
use super::lock::Attempt;
use super::record::{OLDEST, SCHEMA};
use super::{Error, Registry, Result};

pub(super) const FILE: &str = "schema";
/// `2 <boot id>` and some room.
const MAX: u64 = 64;

impl Registry {
    /// The schema to write: this version's, or while no viprouted of it has run in this boot the one before.
    pub(super) fn schema(&self) -> Result<u64> {
        let path = self.dir().join(FILE);
        let mut text = String::new();
        match file::open(&path).and_then(|file| file.take(MAX).read_to_string(&mut text)) {
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(OLDEST),
            Err(e) if e.kind() == std::io::ErrorKind::InvalidData => return Ok(OLDEST),
            Err(e) => return Err(Error::io("read", &path)(e)),
        }
        let Some((schema, boot)) = text.trim().split_once(' ') else { return Ok(OLDEST) };
        match schema.parse::<u64>() {
            Ok(schema) if boot == current_boot()? => Ok(schema.clamp(OLDEST, SCHEMA)),
            _ => Ok(OLDEST),
        }
    }

    /// For a viprouted at its start: from now on this version's schema is written, and what is there is rewritten. What is
    /// damaged stays as it is, and so does what a call of the plugin is at work on.
    pub fn raise_schema(&self) -> Result<()> {
        file::make_dir(self.dir())?;
        {
            let _lock = self.lock()?;
            if self.schema()? < SCHEMA {
                write_text(&self.dir().join(FILE), &format!("{SCHEMA} {}", current_boot()?))?;
            }
        }
        // Another boot's is discarded by the next call.
        if !self.is_of_this_boot()? {
            return Ok(());
        }
        for key in self.vips()? {
            if let Some(mut vip) = self.vip_if_present(&key)? {
                vip.rewrite()?;
            }
        }
        self.attachments()?.iter().try_for_each(|attachment| self.rewrite_attachment(attachment))
    }

    fn rewrite_attachment(&self, attachment: &AttachmentId) -> Result<()> {
        match self.try_attachment(attachment)? {
            Attempt::Taken(locked) => locked.rewrite(self, SCHEMA),
            Attempt::Busy | Attempt::Absent => Ok(()),
        }
    }
}

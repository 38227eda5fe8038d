//! The record of one attachment, which is its lock too: the call that creates it has the attachment, and DEL waits
//! for the ADD that is under way.

use std::io::Write;
use std::path::PathBuf;

use crate::model::AttachmentId;

use super::lock::{Attempt, Lock, Missing, WaitLimit};
use super::record::AttachmentRecord;
use super::{Error, Registry, Result, file};

/// As files are named, without the ending: `<containerID>@<ifname>`. Container IDs have no `@`.
pub fn attachment_name(attachment: &AttachmentId) -> String {
    format!("{}@{}", attachment.container_id, attachment.ifname)
}

/// A locked attachment.
#[derive(Debug)]
pub struct LockedAttachment {
    lock: Lock,
    path: PathBuf,
    /// What is recorded of it; an error where the file is damaged.
    pub record: Result<AttachmentRecord>,
}

impl Registry {
    /// Claims an attachment for an ADD.
    pub fn attach(&self, attachment: &AttachmentId, record: AttachmentRecord) -> Result<LockedAttachment> {
        let path = self.attachment_path(attachment);
        let Some(lock) = Lock::create_new(&path, &self.waits)? else {
            let AttachmentId { container_id, ifname } = attachment.clone();
            return Err(Error::AlreadyAttached { container_id, ifname, path });
        };
        let written = self
            .schema()
            .and_then(|schema| file::encode(&path, &record, schema))
            .and_then(|text| lock.file().write_all(&text).map_err(Error::io("write", &path)));
        if let Err(e) = written {
            let _ = file::remove(&path);
            return Err(e);
        }
        Ok(LockedAttachment { lock, path, record: Ok(record) })
    }

    /// Locks what is recorded of an attachment, if anything is; waits for an ADD of it to end.
    pub fn attachment(&self, attachment: &AttachmentId) -> Result<Option<LockedAttachment>> {
        let path = self.attachment_path(attachment);
        let Some(lock) = Lock::take(&path, Missing::GiveUp, &self.waits)? else {
            return Ok(None);
        };
        file::remove(&file::temporary(&path))?; // who was killed while it replaced the record has left half of one
        let record = match file::read(&path) {
            Ok(Some(record)) => Ok(record),
            Ok(None) => return Ok(None),
            Err(e) if e.is_damage() => Err(e),
            Err(e) => return Err(e),
        };
        Ok(Some(LockedAttachment { lock, path, record }))
    }

    /// The same without waiting: an ADD may hold the lock for seconds.
    pub fn try_attachment(&self, attachment: &AttachmentId) -> Result<Attempt<LockedAttachment>> {
        let path = self.attachment_path(attachment);
        let lock = match Lock::attempt(&path)? {
            Attempt::Taken(lock) => lock,
            Attempt::Busy => return Ok(Attempt::Busy),
            Attempt::Absent => return Ok(Attempt::Absent),
        };
        file::remove(&file::temporary(&path))?; // who was killed while it replaced the record has left half of one
        let record = match file::read(&path) {
            Ok(Some(record)) => Ok(record),
            Ok(None) => return Ok(Attempt::Absent),
            Err(e) if e.is_damage() => Err(e),
            Err(e) => return Err(e),
        };
        Ok(Attempt::Taken(LockedAttachment { lock, path, record }))
    }

    /// The attachments recorded. A file that no attachment could have made is left alone.
    pub fn attachments(&self) -> Result<Vec<AttachmentId>> {
        let names = file::list(&self.attachments_dir())?;
        Ok(names.iter().filter_map(|name| attachment_of(name.strip_suffix(".json")?)).collect())
    }

    /// Reads an attachment's record without its lock.
    pub fn attachment_record(&self, attachment: &AttachmentId) -> Result<Option<AttachmentRecord>> {
        file::read(&self.attachment_path(attachment))
    }

    /// Whether there is a record of that name, usable or not.
    pub fn is_attached(&self, name: &str) -> bool {
        self.attachments_dir().join(format!("{name}.json")).exists()
    }

    fn attachment_path(&self, attachment: &AttachmentId) -> PathBuf {
        self.attachments_dir().join(format!("{}.json", attachment_name(attachment)))
    }
}

/// The attachment of this name.
pub fn attachment_of(name: &str) -> Option<AttachmentId> {
    let (container_id, ifname) = name.split_once('@')?;
    Some(AttachmentId { container_id: container_id.to_owned(), ifname: ifname.to_owned() })
}

impl LockedAttachment {
    /// Replaces the record as a whole. The lock is on the file itself: the new one is locked before it takes the old one's
    /// place, so that a call that waits for the old one then waits for the new one.
    pub fn replace(&mut self, registry: &Registry, record: AttachmentRecord) -> Result<()> {
        let schema = registry.schema()?;
        self.write(record, schema, &registry.waits)
    }

    /// Writes the record in this version's schema, where it is in an earlier one. One that is damaged stays.
    pub fn rewrite(mut self, registry: &Registry, schema: u64) -> Result<()> {
        match self.record.as_ref().cloned() {
            Ok(record) if file::schema_of(&self.path).is_some_and(|found| found < schema) => {
                self.write(record, schema, &registry.waits)
            }
            _ => Ok(()),
        }
    }

    fn write(&mut self, record: AttachmentRecord, schema: u64, waits: &WaitLimit) -> Result<()> {
        let text = file::encode(&self.path, &record, schema)?;
        let temporary = file::temporary(&self.path);
        let absent = || Error::io("write", &temporary)(std::io::ErrorKind::NotFound.into());
        let lock = Lock::take(&temporary, Missing::Create, waits)?.ok_or_else(absent)?;
        // A crash may have left some text there.
        let written = lock.file().set_len(0).and_then(|()| lock.file().write_all(&text));
        if let Err(e) = written.and_then(|()| std::fs::rename(&temporary, &self.path)) {
            let _ = file::remove(&temporary);
            return Err(Error::io("write", &self.path)(e));
        }
        self.lock = lock;
        self.record = Ok(record);
        Ok(())
    }

    /// Removes the record: the attachment no longer exists. The damage of a damaged one is logged.
    pub fn remove(self) -> Result<()> {
        if let Err(damage) = &self.record {
            let path = self.path.display();
            tracing::warn!(%path, error = damage as &dyn std::error::Error, "removing an unusable record");
        }
        file::remove_record(&self.path)
    }
}

//! The record of one attachment, which is its lock too: who makes it has the attachment, and DEL waits for the ADD that
//! is under way.

use std::io::Write;
use std::path::PathBuf;

use crate::cni::env::Attachment;

use super::lock::{Attempt, Lock, Missing};
use super::record::AttachmentRecord;
use super::{Error, Registry, Result, file};

/// As files are named, without the ending: `<containerID>@<ifname>`. Container IDs have no `@`.
pub fn attachment_name(attachment: &Attachment) -> String {
    format!("{}@{}", attachment.container_id, attachment.ifname)
}

/// A locked attachment.
#[derive(Debug)]
pub struct LockedAttachment {
    _lock: Lock,
    path: PathBuf,
    /// What is recorded of it; an error where the file is damaged.
    pub record: Result<AttachmentRecord>,
}

impl Registry {
    /// Claims an attachment for an ADD.
    pub fn attach(&self, attachment: &Attachment, record: AttachmentRecord) -> Result<LockedAttachment> {
        let path = self.attachment_path(attachment);
        let Some(lock) = Lock::create_new(&path)? else {
            let Attachment { container_id, ifname } = attachment.clone();
            return Err(Error::AlreadyAttached { container_id, ifname, path });
        };
        let written = serde_json::to_vec(&record)
            .map_err(std::io::Error::from)
            .and_then(|text| lock.file().write_all(&text))
            .and_then(|()| lock.file().write_all(b"\n"));
        if let Err(e) = written {
            let _ = file::remove(&path);
            return Err(Error::io("write", &path)(e));
        }
        Ok(LockedAttachment { _lock: lock, path, record: Ok(record) })
    }

    /// Locks what is recorded of an attachment, if anything is; waits for an ADD of it to end.
    pub fn attachment(&self, attachment: &Attachment) -> Result<Option<LockedAttachment>> {
        let path = self.attachment_path(attachment);
        let Some(lock) = Lock::take(&path, Missing::GiveUp)? else {
            return Ok(None);
        };
        let record = match file::read(&path) {
            Ok(Some(record)) => Ok(record),
            Ok(None) => return Ok(None),
            Err(e) if e.is_damage() => Err(e),
            Err(e) => return Err(e),
        };
        Ok(Some(LockedAttachment { _lock: lock, path, record }))
    }

    /// The same without waiting: an ADD may hold the lock for seconds.
    pub fn try_attachment(&self, attachment: &Attachment) -> Result<Attempt<LockedAttachment>> {
        let path = self.attachment_path(attachment);
        let lock = match Lock::attempt(&path)? {
            Attempt::Taken(lock) => lock,
            Attempt::Busy => return Ok(Attempt::Busy),
            Attempt::Absent => return Ok(Attempt::Absent),
        };
        let record = match file::read(&path) {
            Ok(Some(record)) => Ok(record),
            Ok(None) => return Ok(Attempt::Absent),
            Err(e) if e.is_damage() => Err(e),
            Err(e) => return Err(e),
        };
        Ok(Attempt::Taken(LockedAttachment { _lock: lock, path, record }))
    }

    /// The attachments recorded. A file that no attachment could have made is left alone.
    pub fn attachments(&self) -> Result<Vec<Attachment>> {
        let names = file::list(&self.attachments_dir())?;
        Ok(names.iter().filter_map(|name| attachment_of(name.strip_suffix(".json")?)).collect())
    }

    /// An attachment's record as it stands, without its lock.
    pub fn attachment_record(&self, attachment: &Attachment) -> Result<Option<AttachmentRecord>> {
        file::read(&self.attachment_path(attachment))
    }

    /// Whether there is a record of that name, usable or not.
    pub fn is_attached(&self, name: &str) -> bool {
        self.attachments_dir().join(format!("{name}.json")).exists()
    }

    fn attachment_path(&self, attachment: &Attachment) -> PathBuf {
        self.attachments_dir().join(format!("{}.json", attachment_name(attachment)))
    }
}

/// The attachment that a name stands for.
pub fn attachment_of(name: &str) -> Option<Attachment> {
    let (container_id, ifname) = name.split_once('@')?;
    Some(Attachment { container_id: container_id.to_owned(), ifname: ifname.to_owned() })
}

impl LockedAttachment {
    /// Removes the record: the attachment is no more. A damaged one does not go without a word.
    pub fn remove(self) -> Result<()> {
        if let Err(damage) = &self.record {
            eprintln!("viproute: removing a record that can't be used: {damage}");
        }
        file::remove(&self.path).map(|_| ())
    }
}

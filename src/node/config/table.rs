//! Reading a TOML table key by key, so that every complaint names the key, its value and what was expected.

use toml::{Table, Value};

use super::Error;

/// A table of the file, and its place there.
pub(super) struct Reader {
    /// `""`, `"dhcp."`, `"pin[2]."`.
    prefix: String,
    table: Table,
    asked: Vec<&'static str>,
}

/// Tables of one key.
pub(super) struct Tables {
    pub(super) all: Vec<Reader>,
    /// They were written as an array.
    pub(super) is_list: bool,
}

impl Reader {
    /// A reader of `table`, whose keys are named after `prefix`.
    pub(super) fn new(prefix: impl Into<String>, table: Table) -> Self {
        Self { prefix: prefix.into(), table, asked: Vec::new() }
    }

    /// Whether a key that isn't read yet is there.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// The value at `key` as `read` understands it, none if it isn't there.
    pub(super) fn take<T>(
        &mut self,
        key: &'static str,
        expected: &'static str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        self.asked.push(key);
        let Some(value) = self.table.remove(key) else {
            return Ok(None);
        };
        match read(&value) {
            Some(read) => Ok(Some(read)),
            None => Err(self.bad(key, &value, expected)),
        }
    }

    /// As [`Reader::take`], for a string.
    pub(super) fn text<T>(
        &mut self,
        key: &'static str,
        expected: &'static str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        self.take(key, expected, |value| value.as_str().and_then(read))
    }

    /// As [`Reader::take`], for an array of strings; the complaint names the first bad element.
    pub(super) fn list<T>(
        &mut self,
        key: &'static str,
        expected: &'static str,
        read: impl Fn(&str) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        let whole = "an array of strings";
        let values = self.take(key, whole, |value| value.as_array().cloned())?.unwrap_or_default();
        let read_one = |value: &Value| {
            let read = value.as_str().and_then(&read);
            read.ok_or_else(|| self.bad(key, value, expected))
        };
        values.iter().map(read_one).collect()
    }

    /// The table at `key`, with a reader of its own.
    pub(super) fn table(&mut self, key: &'static str) -> Result<Option<Reader>, Error> {
        let table = self.take(key, "a table", |value| value.as_table().cloned())?;
        Ok(table.map(|table| Reader::new(format!("{}{key}.", self.prefix), table)))
    }

    /// The array of tables at `key`, each with a reader of its own.
    pub(super) fn tables(&mut self, key: &'static str) -> Result<Vec<Reader>, Error> {
        let all = |value: &Value| -> Option<Vec<Table>> {
            value.as_array()?.iter().map(|one| one.as_table().cloned()).collect()
        };
        let tables = self.take(key, "an array of tables ([[…]])", all)?.unwrap_or_default();
        let reader = |(i, table)| Reader::new(format!("{}{key}[{i}].", self.prefix), table);
        Ok(tables.into_iter().enumerate().map(reader).collect())
    }

    /// The table at `key`, or the array of tables; an empty table where there is neither.
    pub(super) fn table_or_tables(&mut self, key: &'static str) -> Result<Tables, Error> {
        if self.table.get(key).is_some_and(Value::is_array) {
            return Ok(Tables { all: self.tables(key)?, is_list: true });
        }
        let one = self.table(key)?.unwrap_or_else(|| Reader::new(format!("{}{key}.", self.prefix), Table::new()));
        Ok(Tables { all: vec![one], is_list: false })
    }

    /// As [`Reader::list`], where one string may stand for itself.
    pub(super) fn one_or_more<T>(
        &mut self,
        key: &'static str,
        expected: &'static str,
        read: impl Fn(&str) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        if self.table.get(key).is_some_and(Value::is_array) {
            return self.list(key, expected, read);
        }
        Ok(self.text(key, expected, read)?.into_iter().collect())
    }

    /// The complaint about `value` at `key`.
    pub(super) fn bad(&self, key: &str, value: &impl ToString, expected: impl Into<String>) -> Error {
        Error::BadValue { key: format!("{}{key}", self.prefix), value: value.to_string(), expected: expected.into() }
    }

    /// The complaint about a key that isn't there.
    pub(super) fn missing(&self, key: &str, expected: &'static str) -> Error {
        Error::Missing { key: format!("{}{key}", self.prefix), expected }
    }

    /// Refuses keys that the configuration doesn't know.
    pub(super) fn finish(self) -> Result<(), Error> {
        match self.table.keys().next() {
            None => Ok(()),
            Some(key) => Err(Error::UnknownKey { key: format!("{}{key}", self.prefix), known: self.asked.join(", ") }),
        }
    }
}

//! Hash maps that the programs read and that follow from something else: each is opened where it is pinned.

use std::path::Path;

use aya::Pod;
use aya::maps::{HashMap, Map, MapData};

use super::maps::open;
use super::{Error, Result};

/// The map of that name; `None`: it isn't pinned, since programs that don't know it run.
pub(super) fn map<K: Pod, V: Pod>(dir: &Path, name: &str) -> Result<Option<HashMap<MapData, K, V>>> {
    let Some(map) = open(dir, name)? else { return Ok(None) };
    HashMap::try_from(Map::HashMap(map)).map(Some).map_err(|e| Error::map("open", dir.join(name).display(), e))
}

/// All keys that it has.
pub(super) fn keys<K: Pod, V: Pod>(map: &HashMap<MapData, K, V>, name: &str) -> Result<Vec<K>> {
    let keys: std::result::Result<Vec<K>, _> = map.keys().collect();
    keys.map_err(|e| Error::map("list", name, e))
}

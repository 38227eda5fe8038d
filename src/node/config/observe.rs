//! The keys about metrics and the log.

use std::net::SocketAddrV4;
use std::path::PathBuf;

use tracing::level_filters::LevelFilter;

use super::table::Reader;
use super::{Error, path_of};

const LEVEL: &str = "\"error\", \"warn\", \"info\", \"debug\" or \"trace\"";

/// Where metrics are served.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metrics {
    /// A unix socket.
    pub socket: Option<PathBuf>,
    /// A TCP address.
    pub listen: Option<SocketAddrV4>,
}

impl Metrics {
    /// An empty `metrics` is none.
    pub(super) fn read(top: &mut Reader) -> Result<Self, Error> {
        let path = |text: &str| if text.is_empty() { Some(None) } else { path_of(text).map(Some) };
        let socket = top.text("metrics", "an absolute path of at most 107 bytes, or \"\"", path)?;
        let socket = socket.unwrap_or_else(|| Some("/run/viproute/metrics.sock".into()));
        let address = |text: &str| text.parse().ok();
        let listen = top.text("metrics_listen", "an IPv4 address and a port, as \"127.0.0.1:9118\"", address)?;
        Ok(Self { socket, listen })
    }
}

/// The log's form and level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    /// What a line is.
    pub form: Form,
    /// What is worth a line.
    pub level: LevelFilter,
}

/// What a line of the log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// For people.
    Text,
    /// A JSON object.
    Json,
}

impl Log {
    pub(super) fn read(top: &mut Reader) -> Result<Self, Error> {
        let form = top.text("log", "\"text\" or \"json\"", form_name)?.unwrap_or(Form::Text);
        let level = top.text("log_level", LEVEL, level_name)?.unwrap_or(LevelFilter::INFO);
        Ok(Self { form, level })
    }
}

fn form_name(text: &str) -> Option<Form> {
    match text {
        "text" => Some(Form::Text),
        "json" => Some(Form::Json),
        _ => None,
    }
}

fn level_name(text: &str) -> Option<LevelFilter> {
    match text {
        "error" => Some(LevelFilter::ERROR),
        "warn" => Some(LevelFilter::WARN),
        "info" => Some(LevelFilter::INFO),
        "debug" => Some(LevelFilter::DEBUG),
        "trace" => Some(LevelFilter::TRACE),
        _ => None,
    }
}

//! Who listens, asked of many network namespaces by one system call (`listen.bpf.c`).

use std::net::SocketAddrV4;

use aya::programs::{ProgramError, SchedClassifier};
use aya::{Ebpf, EbpfLoader, TestRun, TestRunOptions};

use super::{Error, Result};

static FULL: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/listen.bpf.o"));
static WITHOUT_BTF: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/listen.without-btf.bpf.o"));
/// The objects, and how many questions each takes in one run: a packet is never longer than a page less what the kernel keeps
/// around it.
static OBJECTS: [(&[u8], usize); 2] = [(FULL, 256), (WITHOUT_BTF, 32)];
const PROGRAM: &str = "listening";
/// Where the questions begin: at a multiple of 4 from where the kernel lays a packet, which is 2 before one.
const START: usize = 18;
/// Bytes of `struct question`.
const LENGTH: usize = 12;

/// Whether a packet from any source would find a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// The namespace, as an id of the one that asks.
    pub netns: u32,
    /// Where it would go.
    pub to: SocketAddrV4,
    /// The IP protocol: TCP, where the socket must listen, or UDP.
    pub protocol: u8,
}

/// The program, loaded. It ends with this.
#[derive(Debug)]
pub struct Listening {
    object: Ebpf,
    /// How many questions it takes in one run.
    questions: usize,
}

impl Listening {
    /// Loads it: of its objects the first that the kernel takes.
    pub fn load() -> Result<Self> {
        let [full, without_btf] = OBJECTS;
        Self::load_object(full).or_else(|_| Self::load_object(without_btf))
    }

    fn load_object((bytes, questions): (&[u8], usize)) -> Result<Self> {
        let mut object = EbpfLoader::new().load(bytes).map_err(failed)?;
        let program = object.program_mut(PROGRAM).ok_or_else(missing)?;
        let program: &mut SchedClassifier = program.try_into().map_err(|e: ProgramError| failed(e))?;
        program.load().map_err(failed)?;
        Ok(Self { object, questions })
    }

    /// The answers, in order. By the kernel's own lookup: sockets bound to any address count, IPv6 ones that take IPv4 too;
    /// one that is tied to a device doesn't. A namespace that isn't there has none.
    pub fn ask(&self, questions: &[Question]) -> Result<Vec<bool>> {
        let program = self.object.program(PROGRAM).ok_or_else(missing)?;
        let program: &SchedClassifier = program.try_into().map_err(|e: ProgramError| failed(e))?;
        let mut answers = Vec::with_capacity(questions.len());
        for some in questions.chunks(self.questions) {
            let asked = write(some);
            let mut answered = vec![0; asked.len()];
            let options =
                TestRunOptions { data_in: Some(&asked), data_out: Some(&mut answered), ..TestRunOptions::default() };
            program.test_run(options).map_err(failed)?;
            answers.extend(answered[START..].chunks_exact(LENGTH).map(|question| question.last() == Some(&1)));
        }
        Ok(answers)
    }
}

/// The program, loaded when something is first asked.
#[derive(Debug, Default)]
pub enum OnDemand {
    /// Nothing was asked so far.
    #[default]
    NotLoaded,
    /// It is.
    Loaded(Listening),
    /// It can't be loaded, or run.
    Unavailable,
}

impl OnDemand {
    /// The answers, in order; `None`: it can't be run.
    pub fn ask(&mut self, questions: &[Question]) -> Option<Vec<bool>> {
        if matches!(self, Self::NotLoaded) {
            *self = Listening::load().map_or_else(|error| Self::unavailable(&error), Self::Loaded);
        }
        let Self::Loaded(program) = self else { return None };
        match program.ask(questions) {
            Ok(answers) => Some(answers),
            Err(error) => {
                *self = Self::unavailable(&error);
                None
            }
        }
    }

    fn unavailable(error: &Error) -> Self {
        let error = crate::with_causes(error);
        tracing::info!(error, "each pod that is to listen is asked by itself, which costs more");
        Self::Unavailable
    }
}

fn failed(source: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Listening(Box::new(source))
}

fn missing() -> Error {
    Error::Listening(format!("the object has no program {PROGRAM}").into())
}

/// Each as `struct question`, addresses and ports in network order.
fn write(questions: &[Question]) -> Vec<u8> {
    let mut bytes = vec![0; START];
    for Question { netns, to, protocol } in questions {
        bytes.extend(netns.to_ne_bytes());
        bytes.extend(to.ip().octets());
        bytes.extend(to.port().to_be_bytes());
        bytes.extend([*protocol, 0]);
    }
    bytes
}

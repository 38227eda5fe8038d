//! The loaded programs of the table.

use std::cell::OnceCell;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::{Path, PathBuf};

use aya::programs::{ProgramError, ProgramFd, ProgramInfo, SchedClassifier};
use aya::{Ebpf, EbpfLoader};
use nix::errno::Errno;

use super::pins::{self, PinDir};
use super::spec::{Hook, NEW, PROGRAMS, Parts, ProgramSpec, Variant};
use super::{Error, Result, VERSION, errno_of};

/// Programs of a build, loaded, in the table's order.
#[derive(Debug)]
pub struct Programs(Vec<Program>);

/// A loaded program.
#[derive(Debug)]
pub struct Program {
    /// Which one.
    pub spec: &'static ProgramSpec,
    info: ProgramInfo,
    fd: OnceCell<ProgramFd>,
}

impl Program {
    /// What the kernel says of it is enough: aya's own type for a pinned program tries out what the kernel can do first,
    /// by some twenty system calls.
    fn open(spec: &'static ProgramSpec, pin: &Path) -> Result<Option<Self>> {
        match ProgramInfo::from_pin(pin) {
            Ok(info) => Ok(Some(Self { spec, info, fd: OnceCell::new() })),
            Err(e) if matches!(errno_of(&e), Some(Errno::ENOENT | Errno::ENOTDIR)) => Ok(None),
            Err(e) => Err(Error::load(e)),
        }
    }

    fn load(objects: &mut [Ebpf], dir: &Path, spec: &'static ProgramSpec) -> Result<Self> {
        let missing = || Error::Load(format!("no object has a program {}", spec.name).into());
        let program = objects.iter_mut().find_map(|object| object.program_mut(spec.name)).ok_or_else(missing)?;
        let program: &mut SchedClassifier = program.try_into().map_err(|e: ProgramError| Error::load(e))?;
        program.load().map_err(Error::load)?;
        let pin = new_pin_of(dir, spec);
        pins::remove_if_present(&pin)?; // a crash has left it
        program.pin(&pin).map_err(Error::load)?;
        Self::open(spec, &pin)?.ok_or_else(missing)
    }

    /// Its id in the kernel.
    pub fn id(&self) -> u32 {
        self.info.id()
    }

    /// Its file descriptor, for as long as this lives.
    pub fn fd(&self) -> Result<RawFd> {
        if self.fd.get().is_none() {
            let _ = self.fd.set(self.info.fd().map_err(Error::load)?);
        }
        self.fd.get().map(|fd| fd.as_fd().as_raw_fd()).ok_or_else(|| Error::Load("no descriptor".into()))
    }
}

impl Programs {
    /// The programs of this build that are loaded, if these parts of them are.
    pub fn open(dir: &Path, parts: Parts) -> Result<Option<Self>> {
        Self::open_version(dir, VERSION, parts)
    }

    /// The programs of another build, if those are what is pinned.
    pub fn open_others(dir: &Path) -> Result<Option<Self>> {
        for version in pins::other_versions(dir)? {
            if let Some(programs) = Self::open_version(dir, &version, Parts::default())? {
                return Ok(Some(programs));
            }
        }
        Ok(None)
    }

    fn open_version(dir: &Path, version: &str, parts: Parts) -> Result<Option<Self>> {
        let open = |spec: &'static ProgramSpec| Program::open(spec, &pin(dir, spec, version)).transpose();
        let programs: Vec<_> = PROGRAMS.iter().filter_map(open).collect::<Result<_>>()?;
        // Another build may have fewer, but steers and guards connections, if it is complete.
        let variant = Variant::pinned(dir).unwrap_or(Variant::Full);
        let is_of_variant = |spec: &ProgramSpec| variant.programs().any(|own| own == spec);
        let is_needed = |spec: &&ProgramSpec| match version {
            VERSION => is_of_variant(spec) && parts.have(spec.hook),
            _ => Hook::HOST_VETH.contains(&spec.hook),
        };
        let is_there = |spec: &ProgramSpec| programs.iter().any(|program| program.spec == spec);
        Ok(PROGRAMS.iter().filter(is_needed).all(is_there).then_some(Self(programs)))
    }

    /// Loads these parts, with the maps that are pinned or with new ones, which are pinned. ADDs don't use them yet. Of the objects the
    /// first that the kernel takes; nothing of the others stays.
    pub fn load(dir: &PinDir, parts: Parts) -> Result<Self> {
        let dir = dir.path();
        let (variant, programs) = first_taken(|variant| Self::load_variant(dir, variant, |hook| parts.have(hook)))?;
        for other in Variant::ALL.into_iter().filter(|other| *other != variant) {
            pins::remove_if_present(&dir.join(other.vips()))?;
        }
        Ok(programs)
    }

    /// Loads what these lack of the parts, beside them and with their maps, and publishes it: no device has had another build's.
    pub fn complete(self, dir: &PinDir, parts: Parts) -> Result<Self> {
        let variant = Variant::pinned(dir.path()).unwrap_or(Variant::Full);
        let is_there = |hook: Hook| self.iter().any(|program| program.spec.hook == hook);
        Self::load_variant(dir.path(), variant, |hook| parts.have(hook) && !is_there(hook))?.publish(dir)?;
        let gone = || Error::Load("programs were unpinned meanwhile".into());
        Self::open(dir.path(), parts)?.ok_or_else(gone)
    }

    fn load_variant(dir: &Path, variant: Variant, is_wanted: impl Fn(Hook) -> bool) -> Result<Self> {
        let paths: Vec<(&str, PathBuf)> = variant.map_names().iter().map(|name| (*name, dir.join(name))).collect();
        let mut loader = EbpfLoader::new();
        for (name, path) in &paths {
            loader.map_pin_path(name, path.as_path());
        }
        let objects = variant.objects().into_iter().map(|object| loader.load(object).map_err(Error::load));
        let mut objects = objects.collect::<Result<Vec<_>>>()?;
        let wanted = variant.programs().filter(|spec| is_wanted(spec.hook));
        wanted.map(|spec| Program::load(&mut objects, dir, spec)).collect::<Result<_>>().map(Self)
    }

    /// Whether these are the same ones in the kernel.
    pub fn are(&self, others: &Self) -> bool {
        self.iter().map(Program::id).eq(others.iter().map(Program::id))
    }

    /// Whether the kernel takes the programs. Nothing of them stays.
    pub fn try_out() -> Result<()> {
        let load = |variant: Variant| {
            for object in variant.objects() {
                let mut object = EbpfLoader::new().load(object).map_err(Error::load)?;
                for (_, program) in object.programs_mut() {
                    let program: &mut SchedClassifier = program.try_into().map_err(|e: ProgramError| Error::load(e))?;
                    program.load().map_err(Error::load)?;
                }
            }
            Ok(())
        };
        first_taken(load).map(drop)
    }

    /// From now on they are the ones that ADDs use.
    pub fn publish(&self, dir: &PinDir) -> Result<()> {
        for Program { spec, .. } in self.iter() {
            let path = pin_of(dir.path(), spec);
            std::fs::rename(new_pin_of(dir.path(), spec), &path).map_err(Error::io("pin", &path))?;
        }
        Ok(())
    }

    /// One by one.
    pub fn iter(&self) -> impl Iterator<Item = &Program> {
        self.0.iter()
    }
}

/// The first object that the kernel's verifier takes; where it takes none, why not the last.
pub(super) fn first_taken<T>(load: impl Fn(Variant) -> Result<T>) -> Result<(Variant, T)> {
    let mut refused = None;
    for variant in Variant::ALL {
        match load(variant) {
            Ok(loaded) => return Ok((variant, loaded)),
            Err(error) if error.is_verifiers() => refused = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(refused.unwrap_or_else(|| Error::Load("there is no object".into())))
}

/// Dots are not allowed in names of a BPF filesystem.
fn pin(dir: &Path, spec: &ProgramSpec, version: &str) -> PathBuf {
    dir.join(format!("{}_{version}", spec.name))
}

/// Where a program of this build is.
pub(super) fn pin_of(dir: &Path, spec: &ProgramSpec) -> PathBuf {
    pin(dir, spec, VERSION)
}

/// Where it is until every device has it.
pub(super) fn new_pin_of(dir: &Path, spec: &ProgramSpec) -> PathBuf {
    pin(dir, spec, NEW)
}

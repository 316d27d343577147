//! WebDataset's shards: tar files whose members `KEY.EXTENSION` of one key, one after the other, are a sample; read
//! by their places, so nothing is unpacked.

use std::collections::HashSet;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Result, anyhow, bail};
use serde_json::{Map, Value};
use tar::{Archive, EntryType};

use super::rows::{Cell, Columns, HEAD, Reader};
use super::text::{cell, keys};
use crate::data::format::is_picture_name;
use crate::data::image::container::Container;
use crate::util::exit_code::{ExitCode, WithExitCode, fail};
use crate::util::{interrupt, regular_file};

/// Bytes of a member that are read as text.
const MAX_TEXT: u64 = 1 << 20;
/// Tar files consist of blocks of so many bytes.
const BLOCK: u64 = 512;

pub struct TarShard {
    pub path: PathBuf,
}

/// The members of one key.
struct Sample {
    key: String,
    members: Vec<Member>,
}

struct Member {
    /// In lower case, all that follows the first dot of the name.
    extension: String,
    name: String,
    /// Where its header and its bytes are.
    header: u64,
    start: u64,
    len: u64,
    text: Option<Vec<u8>>,
}

/// Where the pictures of a shard are.
#[derive(Debug)]
struct Pictures {
    path: PathBuf,
    /// First byte and length of each; no bytes where a sample has no picture.
    places: Vec<(u64, u32)>,
    /// Their names, one behind the other, and where each ends.
    names: String,
    ends: Vec<u32>,
}

impl TarShard {
    /// Calls `take` with each sample until it answers false; the contents of members whose extension `wanted`
    /// accepts come along.
    fn scan(
        &self,
        wanted: impl Fn(&str) -> bool,
        mut take: impl FnMut(Sample) -> Result<bool>,
    ) -> Result<()> {
        let damaged = |error: std::io::Error| {
            fail(ExitCode::Data, format!("{}: {error}; write the shard again", self.path.display()))
        };
        let refuse = |what: String| fail(ExitCode::Data, format!("{}: {what}", self.path.display()));
        let file = regular_file::open(&self.path).map_err(damaged)?;
        let size = file.metadata().map_err(damaged)?.len();
        if size == 0 {
            return Err(refuse("is empty; write the shard again".into()));
        }
        let mut start = [0; 4];
        if file.read_at(&mut start, 0).is_ok_and(|read| read > 1)
            && (start.starts_with(&[0x1f, 0x8b]) || start == [0x28, 0xb5, 0x2f, 0xfd])
        {
            return Err(refuse(
                "is compressed; unpack it (gunzip, unzstd) to a .tar, which is read by places".into(),
            ));
        }
        let mut archive = Archive::new(file);
        let (mut sample, mut end): (Option<Sample>, u64) = (None, 0);
        let (mut known, mut count) = (HashSet::new(), 0usize);
        for entry in archive.entries_with_seek().map_err(damaged)? {
            let mut entry = entry.map_err(damaged)?;
            let (name, len) = (String::from_utf8_lossy(&entry.path_bytes()).into_owned(), entry.size());
            let start = entry.raw_file_position();
            end = start + len.div_ceil(BLOCK) * BLOCK;
            if start + len > size {
                return Err(refuse(format!("is truncated within {name}; write the shard again")));
            }
            match entry.header().entry_type() {
                EntryType::Regular | EntryType::Continuous => {}
                EntryType::GNUSparse => {
                    return Err(refuse(format!("{name} is stored as a sparse file; write it whole")));
                }
                _ => continue,
            }
            let (folder, file_name) =
                name.rsplit_once('/').map_or(("", &*name), |(folder, file)| (folder, file));
            if file_name.starts_with('.') {
                continue;
            }
            let Some((stem, extension)) = file_name.split_once('.') else {
                return Err(refuse(format!(
                    "{name} has no extension, and KEY.EXTENSION is wanted, as 0001.jpg"
                )));
            };
            let key = if folder.is_empty() { stem.to_owned() } else { format!("{folder}/{stem}") };
            let extension = extension.to_lowercase();
            let text = match wanted(&extension) && len <= MAX_TEXT {
                true => {
                    let mut text = Vec::with_capacity(len as usize);
                    entry.read_to_end(&mut text).map_err(damaged)?;
                    Some(text)
                }
                false => None,
            };
            let header = entry.raw_header_position();
            let member = Member { extension, name, header, start, len, text };
            match &mut sample {
                Some(sample) if sample.key == key => {
                    if sample.members.iter().any(|other| other.extension == member.extension) {
                        return Err(refuse(format!("holds {} twice; remove one", member.name)));
                    }
                    sample.members.push(member);
                }
                _ => {
                    if let Some(done) = sample.replace(Sample { key: key.clone(), members: vec![member] })
                        && !take(done)?
                    {
                        return Ok(());
                    }
                    if !known.insert(key) {
                        let name = sample.map_or_else(String::new, |sample| sample.members[0].name.clone());
                        return Err(refuse(format!(
                            "{name} comes again after other samples; the members of a sample follow each other \
                             (tar --sort=name)"
                        )));
                    }
                    count += 1;
                    if count.is_multiple_of(4096) && interrupt::is_requested() {
                        return Ok(());
                    }
                }
            }
        }
        if let Some(done) = sample {
            take(done)?;
        }
        self.check_end(archive.into_inner(), end, size)
    }

    /// Refuses what ends early, or goes on behind its end.
    fn check_end(&self, mut file: File, end: u64, size: u64) -> Result<()> {
        let refuse = |what: &str| Err(fail(ExitCode::Data, format!("{}: {what}", self.path.display())));
        if end + 2 * BLOCK > size {
            return refuse(
                "has no end mark (two empty blocks), as if it were truncated; write the shard again",
            );
        }
        let unreadable = || format!("{}: cannot be read", self.path.display());
        file.seek(SeekFrom::Start(end)).with_exit_code(ExitCode::Data, unreadable)?;
        let mut block = [0; 1 << 14];
        loop {
            match file.read(&mut block).with_exit_code(ExitCode::Data, unreadable)? {
                0 => return Ok(()),
                read if block[..read].iter().all(|&byte| byte == 0) => {}
                _ => {
                    return refuse(
                        "goes on behind its end mark: are these two archives? List them both in `file`",
                    );
                }
            }
        }
    }
}

impl Reader for TarShard {
    fn path(&self) -> &Path {
        &self.path
    }

    /// The extensions of the first samples, in the order of their appearance; the keys of .json members as
    /// `json.KEY`. Pictures of several formats, of which no sample has two, are one column such as `jpg;png`.
    fn names(&self) -> Result<Vec<String>> {
        let (mut names, mut rows, mut is_one) = (Vec::<String>::new(), 0, true);
        self.scan(
            |extension| extension == "json",
            |sample| {
                let pictures = sample.members.iter().filter(|member| is_picture(&member.extension)).count();
                is_one &= pictures <= 1;
                for member in &sample.members {
                    let found = match &member.text {
                        Some(text) => keys(&self.json(&sample, text)?)
                            .into_iter()
                            .map(|key| format!("json.{key}"))
                            .collect(),
                        None => vec![member.extension.clone()],
                    };
                    names.extend(found.into_iter().filter(|name| !names.contains(name)).collect::<Vec<_>>());
                }
                rows += 1;
                Ok(rows < HEAD)
            },
        )?;
        let pictures: Vec<_> = names.iter().filter(|name| is_picture(name)).cloned().collect();
        if is_one && pictures.len() > 1 {
            names.retain(|name| !is_picture(name));
            names.insert(0, pictures.join(";"));
        }
        Ok(names)
    }

    fn read(&self, wanted: &[&str], most: usize) -> Result<Columns> {
        let mut columns = Columns { cells: vec![Vec::new(); wanted.len()], ..Columns::default() };
        let mut pictures =
            Pictures { path: self.path.clone(), places: Vec::new(), names: String::new(), ends: Vec::new() };
        let is_text = |extension: &str| {
            !is_picture(extension)
                && wanted
                    .iter()
                    .any(|name| *name == extension || extension == "json" && name.starts_with("json."))
        };
        self.scan(is_text, |sample| {
            let member = |extension: &str| sample.members.iter().find(|member| member.extension == extension);
            let json = match member("json").and_then(|member| member.text.as_ref()) {
                Some(text) => self.json(&sample, text)?,
                None => Map::new(),
            };
            let mut place = (0, 0);
            for (name, cells) in wanted.iter().zip(&mut columns.cells) {
                cells.push(match name.split(';').find_map(member) {
                    Some(picture) if is_picture(&picture.extension) => {
                        let len = u32::try_from(picture.len);
                        place = (picture.start, len.map_err(|_| too_large(&self.path, &picture.name))?);
                        pictures.names += &picture.name;
                        Cell::Picture
                    }
                    Some(member) => text(member),
                    None => name.strip_prefix("json.").map_or(Cell::Empty, |key| cell(&json, key)),
                });
            }
            pictures.places.push(place);
            pictures.ends.push(pictures.names.len() as u32);
            columns.at.push(sample.members[0].header);
            Ok(columns.at.len() < most)
        })?;
        columns.pictures = Some(Arc::new(pictures));
        Ok(columns)
    }

    /// By the name in the header at this byte.
    fn place(&self, at: u64) -> String {
        let name = || -> Result<String> {
            let mut file = regular_file::open(&self.path)?;
            file.seek(SeekFrom::Start(at))?;
            let mut archive = Archive::new(file);
            let entry = archive.entries()?.next().ok_or_else(|| anyhow!("no member"))??;
            Ok(String::from_utf8_lossy(&entry.path_bytes()).into_owned())
        };
        format!("{}: {}", self.path.display(), name().unwrap_or_else(|_| format!("byte {at}")))
    }
}

impl TarShard {
    fn json(&self, sample: &Sample, text: &[u8]) -> Result<Map<String, Value>> {
        let refuse = |what: String| {
            fail(ExitCode::Data, format!("{}: {}.json {what}", self.path.display(), sample.key))
        };
        match serde_json::from_slice(text) {
            Ok(Value::Object(object)) => Ok(object),
            Ok(_) => Err(refuse("is no object".into())),
            Err(error) => Err(refuse(format!("is no JSON: {error}"))),
        }
    }
}

fn is_picture(extension: &str) -> bool {
    extension.split(';').all(|extension| is_picture_name(Path::new(&format!("x.{extension}"))))
}

fn text(member: &Member) -> Cell {
    match member.text.as_deref().map(std::str::from_utf8) {
        Some(Ok(text)) if text.trim().is_empty() => Cell::Empty,
        Some(Ok(text)) => Cell::Text(text.trim().into()),
        _ => Cell::Other,
    }
}

fn too_large(path: &Path, name: &str) -> anyhow::Error {
    fail(ExitCode::Data, format!("{}: {name} has more than 4 GiB", path.display()))
}

impl Container for Pictures {
    fn read(&self, index: u32, most: u64) -> Result<Vec<u8>> {
        let (start, len) = self.places[index as usize];
        let file = regular_file::open(&self.path)?;
        let mut bytes = vec![0; u64::from(len).min(most) as usize];
        if let Err(error) = file.read_exact_at(&mut bytes, start) {
            bail!("cannot be read: {error}");
        }
        Ok(bytes)
    }

    fn name(&self, index: u32) -> String {
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before as usize]);
        self.names[start as usize..self.ends[index as usize] as usize].to_owned()
    }
}

//! Ten thousand damaged copies of small files: no panic, bounded memory, and what a container promises is
//! kept.
//!
//! Zip: a file that is accepted after a truncation or a flipped bit has the original's tensors. Legacy
//! streams have no checksum: the same is asserted for every byte but the pickled object and the raw numbers,
//! where damage may stay unseen.

use std::ops::Range;

use tikhonov::pytorch::reader::heap::TensorInfo;
use tikhonov::pytorch::reader::safetensors;
use tikhonov::pytorch::reader::source::Source;
use tikhonov::pytorch::reader::zip::Archive;

use super::hostile::load;
use super::{sample, script};
use crate::common::{python, tikhonov};

/// splitmix64: the same mutations on every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

type Content = (Vec<(String, TensorInfo)>, Vec<Vec<u8>>);

fn content(bytes: Vec<u8>) -> Option<Content> {
    let (file, storages) = load(bytes).ok()?;
    let mut tensors = file.find(None).ok()?.tensors;
    // Storages are compared by their bytes; their numbers follow the pickle's order.
    tensors.iter_mut().for_each(|(_, tensor)| tensor.storage = 0);
    Some((tensors, storages))
}

/// Name, bytes, and where a legacy stream holds the object and the raw numbers.
type Sample = (String, Vec<u8>, Vec<Range<usize>>);

/// Small files of every kind.
fn samples() -> (tempfile::TempDir, Vec<Sample>) {
    let (folder, printed) = script(
        "import pickle, pickletools
m = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.Linear(4, 3))
state = m.state_dict(); state['tied'] = state['0.weight']; state['turned'] = state['2.weight'].t()
nested = {'epoch': 3, 'args': argparse.Namespace(lr=0.1), 'net': state, 'history': [1.0, 2.0]}
torch.save(nested, 'zip.pt'); torch.save(m, 'module.pt'); torch.jit.script(m).save('script.pt')
src = zipfile.ZipFile('zip.pt')
with zipfile.ZipFile('deflated.pt', 'w', zipfile.ZIP_DEFLATED) as dst:
    for name in src.namelist(): dst.writestr(name, src.read(name))
for name, value in ('legacy.pt', nested), ('legacymodule.pt', m):
    torch.save(value, name, _use_new_zipfile_serialization=False)
    f = open(name, 'rb'); ends = []
    for _ in range(5):
        for op in pickletools.genops(f): pass
        ends.append(f.tell())
    keys = []
    f.seek(ends[3]); keys = pickle.load(f); print(name, ends[2], ends[3], ends[4], len(keys))",
    );
    let mut found = Vec::new();
    for name in ["zip.pt", "module.pt", "script.pt", "deflated.pt", "legacy.pt", "legacymodule.pt"] {
        let bytes = std::fs::read(sample(&folder, name)).unwrap();
        let mut unseen = Vec::new();
        if let Some(line) = printed.lines().find(|line| line.split(' ').next() == Some(name)) {
            let at: Vec<usize> = line.split(' ').skip(1).map(|n| n.parse().unwrap()).collect();
            unseen.push(at[0]..at[1]);
            // The storages: a count of eight bytes, then the numbers.
            let (_, storages) = load(bytes.clone()).unwrap();
            assert_eq!(storages.len(), at[3], "{name}");
            let mut sizes: Vec<usize> = Vec::new();
            let mut next = at[2];
            while next < bytes.len() {
                let count = u64::from_le_bytes(bytes[next..next + 8].try_into().unwrap()) as usize;
                // num_batches_tracked is the one int64 among float32.
                let size = if count == 1 { 8 } else { 4 * count };
                unseen.push(next + 8..next + 8 + size);
                sizes.push(size);
                next += 8 + size;
            }
            assert_eq!(sizes.len(), at[3], "{name}");
        }
        found.push((name.to_owned(), bytes, unseen));
    }
    (folder, found)
}

/// A copy with one byte of data.pkl replaced and both CRCs made right again.
fn edit_pickle(bytes: &[u8], dice: &mut Dice) -> Option<Vec<u8>> {
    const OPCODES: &[u8] = b".N(]})tlsuae0125qrhjcRbQXUTBKMJGio\x80\x81\x82\x85\x86\x87\x88\x89\x8a\x8b\x8c\x8d\x8e\x8f\x90\x91\x92\x93\x94\x95\x96";
    let source = Source::Bytes(bytes.to_vec());
    let budget = tikhonov::pytorch::reader::source::Budget::for_file(bytes.len() as u64);
    let archive = Archive::open(&source, &budget).ok()?;
    let entry = archive.entries.iter().find(|entry| entry.name.ends_with("data.pkl") && !entry.deflated)?;
    let mut copy = bytes.to_vec();
    let range = entry.start as usize..(entry.start + entry.packed) as usize;
    for _ in 0..1 + dice.below(3) {
        let at = range.start + dice.below(range.len());
        copy[at] = match dice.below(3) {
            0 => dice.below(256) as u8,
            _ => OPCODES[dice.below(OPCODES.len())],
        };
    }
    let (old, new) = (entry.crc.to_le_bytes(), crc32fast::hash(&copy[range]).to_le_bytes());
    let places: Vec<usize> = (0..copy.len() - 4).filter(|&at| bytes[at..at + 4] == old).collect();
    places.iter().for_each(|&at| copy[at..at + 4].copy_from_slice(&new));
    Some(copy)
}

#[test]
fn ten_thousand_mutations_neither_crash_nor_grow_nor_pass_for_the_original() {
    let (_folder, samples) = samples();
    let mut dice = Dice(1);
    let (mut tried, mut accepted) = (0, 0);
    for (name, bytes, unseen) in &samples {
        let original = content(bytes.clone()).unwrap_or_else(|| panic!("{name} is not read"));
        let legacy = !unseen.is_empty();
        for cut in 0..500 {
            let len = bytes.len() * cut / 500;
            assert!(content(bytes[..len].to_vec()).is_none(), "{name} cut at {len} was accepted");
            tried += 1;
        }
        for _ in 0..800 {
            let (at, bit) = (dice.below(bytes.len()), dice.below(8));
            let mut copy = bytes.clone();
            copy[at] ^= 1 << bit;
            if let Some(found) = content(copy) {
                accepted += 1;
                let seen = !unseen.iter().any(|range| range.contains(&at));
                assert!(
                    !seen || found == original,
                    "{name} with bit {bit} of byte {at} flipped was accepted, and differs"
                );
            }
            tried += 1;
        }
        for _ in 0..500 {
            // Opcode edits: behind correct checksums, so that the pickle machine itself is hit.
            let copy = match legacy {
                true => {
                    let mut copy = bytes.clone();
                    let at = unseen[0].start + dice.below(unseen[0].len());
                    copy[at] = dice.below(256) as u8;
                    copy
                }
                false => edit_pickle(bytes, &mut dice).unwrap_or_else(|| bytes[1..].to_vec()),
            };
            accepted += u32::from(content(copy).is_some());
            tried += 1;
        }
    }
    // The header of a safetensors file; its numbers have no checksum either.
    let header = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"I64","shape":[],"data_offsets":[8,16]}}"#;
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[7; 16]].concat();
    for _ in 0..1000 {
        let mut copy = bytes.clone();
        let at = dice.below(8 + header.len());
        copy[at] = dice.below(256) as u8;
        let memory = allocation_counter::measure(|| {
            accepted += u32::from(safetensors::header(&Source::Bytes(copy)).is_ok());
        });
        assert!(memory.bytes_max < 64 << 20);
        tried += 1;
    }
    assert!(tried >= 10_000, "{tried}");
    println!("{tried} mutations, {accepted} accepted with unchanged or unchecked content");
}

#[test]
fn damaged_files_end_the_program_with_4_or_0_and_never_with_a_signal() {
    let (folder, samples) = samples();
    let mut dice = Dice(2);
    let mut count = 0;
    for (name, bytes, _) in samples.iter().filter(|(name, ..)| name != "deflated.pt") {
        for kind in 0..4 {
            let copy = match kind {
                0 => bytes[..dice.below(bytes.len())].to_vec(),
                1 => edit_pickle(bytes, &mut dice).unwrap_or_default(),
                _ => {
                    let mut copy = bytes.clone();
                    let at = dice.below(copy.len());
                    copy[at] ^= 1 << dice.below(8);
                    copy
                }
            };
            std::fs::write(sample(&folder, &format!("mutant-{name}-{kind}")), copy).unwrap();
            count += 1;
        }
    }
    // Peak memory above that of reading a sound small file.
    let printed = python(&format!(
        "import os, glob, subprocess
def run(path):
    p = subprocess.Popen([{:?}, 'inspect', path], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    text = p.stderr.read(); _, status, usage = os.wait4(p.pid, 0)
    return os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024, text
base = run({:?}); assert base[0] == 0, base
n = 0
for path in sorted(glob.glob({:?} + '/mutant-*')):
    code, memory, text = run(path)
    assert code in (0, 4) and b'internal error' not in text, (path, code, text)
    assert memory - base[1] <= 4 * os.path.getsize(path) + (64 << 20), (path, memory, base[1])
    n += 1
print(n)",
        tikhonov().get_program(),
        sample(&folder, "zip.pt"),
        folder.path(),
    ));
    assert_eq!(printed.trim(), count.to_string());
}

//! Networks that a Python user exported (`torch.export.save`, `.pt2`): their graph of ATen calls becomes the
//! TorchScript module that [`scripted`](super::scripted) trains, its batch norms and dropouts in training
//! form.
//!
//! Read here and not by libtorch's own loader, which keeps neither gradients nor modules.

mod source;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value as Json;
use tch::{Device, Kind, Tensor, no_grad};
use zip::ZipArchive;
use zip::read::{ArchiveOffset, Config};

use crate::libtorch::bytes;
use crate::libtorch::nativert::ExportedProgram;
use crate::libtorch::script::{Module, Role};
use crate::nn::model::Sides;
use source::Source;

const HOW: &str = "torch.export.export(net.eval(), (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},))";

/// What the archive holds.
pub(super) struct Archive {
    program: Json,
    tensors: Vec<Stored>,
}

struct Stored {
    name: String,
    tensor: Tensor,
    role: Role,
    requires_grad: bool,
}

/// The zip file at `path`, as PyTorch writes them. Searching for the directory, as the crate does unless it is
/// given the archive's start, finds the second entry's record where the first one's name has 30 letters.
pub(super) fn open(path: &Path) -> Result<ZipArchive<BufReader<File>>> {
    let start = Config { archive_offset: ArchiveOffset::Known(0) };
    Ok(ZipArchive::with_config(start, BufReader::new(File::open(path)?))?)
}

/// Whether the zip file at `path` is an archive of `torch.export`.
pub(super) fn is_archive(path: &Path) -> bool {
    open(path).is_ok_and(|archive| {
        archive.file_names().any(|name| name.is_ok_and(|name| name.contains("/models/")))
    })
}

impl Archive {
    /// Every entry is read to its end, which verifies its checksum.
    pub fn read(path: &Path) -> Result<Self> {
        let mut archive = open(path)?;
        let mut entries = BTreeMap::new();
        for index in 0..archive.len() {
            let mut entry = archive.by_index(index)?;
            let name = entry.name()?.into_owned();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).with_context(|| format!("the entry {name}"))?;
            if let Some((_, rest)) = name.split_once('/') {
                entries.insert(rest.to_owned(), content);
            }
        }
        let models: Vec<_> = entries.keys().filter(|name| name.starts_with("models/")).cloned().collect();
        let [model] = models.as_slice() else { bail!("it holds {} programs; wanted one", models.len()) };
        let parse = |name: &str| -> Result<Json> {
            let text = entries.get(name).with_context(|| format!("no entry {name}"))?;
            serde_json::from_slice(text).with_context(|| format!("the entry {name}"))
        };
        let program = parse(model)?;
        let major = program["schema_version"]["major"].as_i64();
        ensure!(
            major == Some(8),
            "its schema is {}, and 8 is read: save it again with PyTorch 2.9 or newer",
            major.map_or("unknown".to_owned(), |major| major.to_string())
        );
        let mut tensors: Vec<Stored> = Vec::new();
        for (folder, table) in [("weights", "model_weights"), ("constants", "model_constants")] {
            let table = parse(&format!("data/{folder}/{table}_config.json"))?;
            let rows = table["config"].as_object().with_context(|| format!("no table of {folder}"))?;
            let mut places: HashMap<&str, &str> = HashMap::new();
            for (name, row) in rows {
                let place = row["path_name"].as_str().with_context(|| format!("`{name}` has no place"))?;
                if let Some(other) = places.insert(place, name) {
                    bail!("`{other}` and `{name}` are one tensor: untie them in Python first");
                }
                ensure!(
                    row["use_pickle"] == false && row["tensor_meta"].is_object(),
                    "`{name}` is pickled, and no plain tensor"
                );
                let content = entries.get(&format!("data/{folder}/{place}"));
                let content = content.with_context(|| format!("no entry data/{folder}/{place}"))?;
                let tensor = tensor(&row["tensor_meta"], content).with_context(|| format!("`{name}`"))?;
                ensure!(name.split('.').all(is_word), "`{name}` is no name of Python's: rename it");
                let role = match (folder, row["is_param"] == true) {
                    ("constants", _) => Role::Constant,
                    (_, true) => Role::Parameter,
                    _ => Role::Buffer,
                };
                let requires_grad = row["tensor_meta"]["requires_grad"] == true;
                tensors.push(Stored { name: name.clone(), tensor, role, requires_grad });
            }
        }
        Ok(Self { program, tensors })
    }

    fn graph(&self) -> &Json {
        &self.program["graph_module"]["graph"]
    }

    /// The name of the one tensor that the program takes.
    fn argument(&self) -> Result<&str> {
        let specs = list(&self.program["graph_module"]["signature"]["input_specs"])?;
        let mut found = None;
        for spec in specs {
            let kind = key(spec)?;
            match kind {
                "parameter" | "buffer" | "tensor_constant" => {}
                "user_input" => {
                    let name = spec[kind]["arg"]["as_tensor"]["name"].as_str();
                    let name = name.context("it takes something that is no tensor")?;
                    ensure!(found.is_none(), "it takes more than one tensor; wanted one");
                    found = Some(name);
                }
                other => bail!("it takes a {other}, which cannot be trained"),
            }
        }
        found.context("it takes no tensor")
    }

    /// The shape of one sample, as it was exported. The batch must be free.
    pub fn input(&self) -> Result<Vec<i64>> {
        let meta = &self.graph()["tensor_values"][self.argument()?];
        let kind = kind(&meta["dtype"])?;
        ensure!(
            [Kind::Float, Kind::Double, Kind::Half, Kind::BFloat16].contains(&kind),
            "it takes {kind:?}, and not floating-point numbers"
        );
        let [batch, sides @ ..] = list(&meta["sizes"])? else {
            bail!("it takes a tensor without dimensions")
        };
        if let Some(batch) = batch["as_int"].as_i64() {
            bail!("its batch is fixed to {batch}; export it with a free one: {HOW}");
        }
        let side = |size: &Json| {
            let hint = &size["as_expr"]["hint"]["as_int"];
            size["as_int"].as_i64().or(hint.as_i64()).context("a side of its input is not known")
        };
        sides.iter().map(side).collect()
    }

    /// Whether some call has this argument true. A batch norm without running statistics does not count, which
    /// takes those of the batch in either mode.
    fn any(&self, argument: &str) -> bool {
        let mut nodes = self.graph()["nodes"].as_array().into_iter().flatten();
        nodes.any(|node| {
            let inputs = || node["inputs"].as_array().into_iter().flatten();
            inputs().any(|input| input["name"] == argument && input["arg"]["as_bool"] == true)
                && !inputs()
                    .any(|input| input["name"] == "running_mean" && !input["arg"]["as_none"].is_null())
        })
    }

    /// The heights and widths that it takes, where both are free.
    pub fn sides(&self) -> Option<Sides> {
        let sizes = list(&self.graph()["tensor_values"][self.argument().ok()?]["sizes"]).ok()?;
        let [_, _, height, width] = sizes else { return None };
        // A symbol, or a multiple of one.
        let parts = |size: &Json| -> Option<(String, i64)> {
            let text = size["as_expr"]["expr_str"].as_str()?;
            let (multiple, symbol) = match text.strip_prefix("Mul(Integer(") {
                Some(rest) => {
                    let (multiple, rest) = rest.split_once("), ")?;
                    (multiple.parse().ok().filter(|multiple| *multiple > 0)?, rest.strip_suffix(')')?)
                }
                None => (1, text),
            };
            let (name, end) = symbol.strip_prefix("Symbol('")?.split_once('\'')?;
            (!end.contains('(')).then(|| (name.to_owned(), multiple))
        };
        let ((rows, multiple), (columns, other)) = (parts(height)?, parts(width)?);
        let least = |symbol: &str| {
            let range = &self.program["range_constraints"][symbol];
            range["max_val"].is_null().then(|| range["min_val"].as_i64().unwrap_or(1).max(1) * multiple)
        };
        // Guards may say more than the symbols do; these two do not.
        let is_known = |guard: &Json| {
            guard.as_str().is_some_and(|text| {
                let rest = text.split_once(".size()[").and_then(|(_, rest)| rest.split_once("] "));
                rest.is_some_and(|(_, rest)| rest == format!("% {multiple} == 0") || rest.starts_with(">= "))
            })
        };
        let is_plain = list(&self.program["guards_code"]).ok()?.iter().all(is_known);
        (is_plain && rows != columns && multiple == other)
            .then(|| Some(Sides { multiple, least: [least(&rows)?, least(&columns)?] }))?
    }

    /// The program as a TorchScript module in training mode, its floating-point tensors in `kind`.
    pub fn module(&self, device: Device, kind: Kind) -> Result<Module> {
        let mut classes = HashMap::new();
        for node in list(&self.graph()["nodes"])? {
            for (path, class) in modules(node) {
                classes.entry(path).or_insert(class);
            }
        }
        let mut root = Place::default();
        for stored in &self.tensors {
            root.add(&stored.name, stored);
        }
        let source = Source::of(self, &root)?;
        let mut peer = None;
        let mut module = root.module("", &classes, device, kind, &mut peer)?;
        module.define(&source).context("its calls as TorchScript")?;
        for entry in module.tensors()? {
            let frozen = self.tensors.iter().any(|stored| stored.name == entry.name && !stored.requires_grad);
            if entry.is_parameter && frozen {
                let _ = entry.tensor.set_requires_grad(false);
            }
        }
        Ok(module)
    }
}

/// Compares `module`, in the mode that the file was exported in, with what libtorch's own interpreter makes of
/// the file; not where it draws random numbers in that mode.
pub(super) fn verify(path: &Path, archive: &Archive, module: &Module, input: &[i64]) -> Result<()> {
    if archive.any("train") {
        return Ok(());
    }
    module.set_training(archive.any("training"))?;
    let xs = Tensor::f_randn([&[2], input].concat(), (Kind::Float, Device::Cpu))?;
    let program = ExportedProgram::load(path)?;
    let (theirs, ours) = (program.run(&xs)?, no_grad(|| module.forward(&xs))?);
    ensure!(
        ours.size() == theirs.size(),
        "read here it answers {:?}, in libtorch {:?}",
        ours.size(),
        theirs.size()
    );
    let apart = (&ours - &theirs).f_abs()?.f_max()?.double_value(&[])
        / theirs.f_abs()?.f_max()?.double_value(&[]).max(1e-12);
    // Weights that are broken answer NaN on both sides.
    ensure!(
        apart <= 1e-4 || apart.is_nan(),
        "read here it answers otherwise than in libtorch: {apart:.1e} apart"
    );
    Ok(())
}

fn list(value: &Json) -> Result<&[Json]> {
    value.as_array().map(Vec::as_slice).context("its program is damaged: a list is missing")
}

/// What may stand in the text of a program.
fn is_word(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// The one key of a union of the schema.
fn key(value: &Json) -> Result<&str> {
    let map = value.as_object().filter(|map| map.len() == 1);
    map.and_then(|map| map.keys().next()).map(String::as_str).context("its program is damaged: no union")
}

/// By the numbers of torch/_export/serde/schema.py: the kind, and the number by which TorchScript calls it.
const DTYPES: &[(i64, Kind, i64)] = &[
    (1, Kind::Uint8, 0),
    (2, Kind::Int8, 1),
    (3, Kind::Int16, 2),
    (4, Kind::Int, 3),
    (5, Kind::Int64, 4),
    (6, Kind::Half, 5),
    (7, Kind::Float, 6),
    (8, Kind::Double, 7),
    (12, Kind::Bool, 11),
    (13, Kind::BFloat16, 15),
];

fn dtype(number: &Json) -> Result<(Kind, i64)> {
    let row = DTYPES.iter().find(|row| number.as_i64() == Some(row.0));
    row.map(|row| (row.1, row.2)).with_context(|| format!("the dtype {number} is not known"))
}

fn kind(number: &Json) -> Result<Kind> {
    Ok(dtype(number)?.0)
}

fn tensor(meta: &Json, content: &[u8]) -> Result<Tensor> {
    let kind = kind(&meta["dtype"])?;
    let number =
        |value: &Json| value["as_int"].as_i64().filter(|n| *n >= 0).context("a size that is no number");
    let numbers = |key: &str| list(&meta[key])?.iter().map(number).collect::<Result<Vec<_>>>();
    let (sizes, strides, offset) = (numbers("sizes")?, numbers("strides")?, number(&meta["storage_offset"])?);
    ensure!(sizes.len() == strides.len(), "sizes and strides differ in number");
    if sizes.contains(&0) {
        return Ok(Tensor::f_zeros(&sizes, (kind, Device::Cpu))?);
    }
    let last = sizes
        .iter()
        .zip(&strides)
        .try_fold(offset, |at, (size, stride)| at.checked_add((size - 1).checked_mul(*stride)?));
    let size = kind.elt_size_in_bytes();
    let fits =
        last.and_then(|last| usize::try_from(last).ok()).is_some_and(|last| last < content.len() / size);
    ensure!(fits, "its sizes {sizes:?} go beyond its {} bytes", content.len());
    let raw = bytes::filled(&[content.len() as u64], |_, buffer| {
        buffer.copy_from_slice(content);
        Ok(())
    })?;
    let raw = raw.first().context("no memory")?.f_narrow(0, 0, (content.len() / size * size) as i64)?;
    Ok(raw.f_view_dtype(kind)?.f_as_strided(&sizes, &strides, offset)?.f_contiguous()?)
}

/// (path, class) of the modules around a call, the root first.
fn modules(node: &Json) -> Vec<(String, String)> {
    let stack = node["metadata"]["nn_module_stack"].as_str().unwrap_or_default();
    let module = |entry: &str| {
        let mut parts = entry.splitn(3, ',');
        let (_, path, class) = (parts.next()?, parts.next()?, parts.next()?.rsplit('.').next()?);
        is_word(class).then(|| (path.to_owned(), class.to_owned()))
    };
    stack.split(';').filter_map(module).collect()
}

/// The tensors and modules under one prefix of the names.
#[derive(Default)]
struct Place<'a> {
    tensors: Vec<(String, &'a Stored)>,
    children: Vec<(String, Place<'a>)>,
}

impl<'a> Place<'a> {
    fn add(&mut self, name: &str, stored: &'a Stored) {
        let Some((first, rest)) = name.split_once('.') else {
            self.tensors.push((name.to_owned(), stored));
            return;
        };
        let at = self.children.iter().position(|(known, _)| known == first).unwrap_or_else(|| {
            self.children.push((first.to_owned(), Place::default()));
            self.children.len() - 1
        });
        self.children[at].1.add(rest, stored);
    }

    fn child(&self, path: &str) -> Option<&Place<'a>> {
        path.split('.').try_fold(self, |place, segment| {
            place.children.iter().find(|(name, _)| name == segment).map(|(_, child)| child)
        })
    }

    fn module(
        &self,
        path: &str,
        classes: &HashMap<String, String>,
        device: Device,
        kind: Kind,
        peer: &mut Option<Module>,
    ) -> Result<Module> {
        let class = classes.get(path).map_or("Module", String::as_str);
        let mut module = Module::new(&format!("__torch__.exported.{class}"), peer.as_ref())?;
        if peer.is_none() {
            *peer = Some(Module::new("__torch__.exported.Peer", Some(&module))?);
        }
        for (name, stored) in &self.tensors {
            let kind = if stored.tensor.is_floating_point() { kind } else { stored.tensor.kind() };
            let tensor = stored.tensor.f_to_device(device)?.f_to_kind(kind)?;
            module.add_tensor(name, &tensor, stored.role)?;
        }
        for (name, child) in &self.children {
            let path = crate::nn::model::join(path, name);
            module.add_child(name, &child.module(&path, classes, device, kind, peer)?)?;
        }
        Ok(module)
    }
}

//! TorchScript modules: built from source text, saved, loaded, frozen and run.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;
use std::ptr::{null, null_mut};

use anyhow::{Context, Result, anyhow};
use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

/// A `torch::jit::Module` of the shim.
#[repr(C)]
struct Raw {
    opaque: [u8; 0],
}

type VisitTensor = extern "C" fn(*mut c_void, *const c_char, bool, *mut C_tensor);
type TakeBytes = extern "C" fn(*mut c_void, *const c_void, usize);
type TakeTensor = extern "C" fn(*mut c_void, *mut C_tensor);
type VisitModule = extern "C" fn(*mut c_void, *const c_char, *const c_char);

unsafe extern "C" {
    fn tikhonov_script_new(name: *const c_char, peer: *const Raw, module: *mut *mut Raw) -> *mut c_char;
    fn tikhonov_script_free(module: *mut Raw);
    fn tikhonov_script_add_tensor(
        module: *mut Raw,
        name: *const c_char,
        tensor: *const C_tensor,
        role: c_int,
    ) -> *mut c_char;
    fn tikhonov_script_add_child(module: *mut Raw, name: *const c_char, child: *const Raw) -> *mut c_char;
    fn tikhonov_script_define(module: *mut Raw, source: *const c_char) -> *mut c_char;
    fn tikhonov_script_add_list(
        module: *mut Raw,
        name: *const c_char,
        kind: c_int,
        count: usize,
        values: *const c_void,
    ) -> *mut c_char;
    fn tikhonov_script_save(
        module: *const Raw,
        extra_name: *const c_char,
        extra: *const c_char,
        context: *mut c_void,
        take: TakeBytes,
    ) -> *mut c_char;
    fn tikhonov_script_load(path: *const c_char, cuda: i64, module: *mut *mut Raw) -> *mut c_char;
    fn tikhonov_script_forward(
        module: *const Raw,
        xs: *const C_tensor,
        ys: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn tikhonov_script_train(module: *mut Raw, on: bool) -> *mut c_char;
    fn tikhonov_script_train_at(module: *mut Raw, path: *const c_char, on: bool) -> *mut c_char;
    fn tikhonov_script_to(module: *mut Raw, like: *const C_tensor) -> *mut c_char;
    fn tikhonov_script_freeze(
        module: *mut Raw,
        optimize: bool,
        kept: *const *const c_char,
        count: usize,
        frozen: *mut *mut Raw,
    ) -> *mut c_char;
    fn tikhonov_script_flat(
        module: *const Raw,
        xs: *const C_tensor,
        other: *const C_tensor,
        context: *mut c_void,
        take: TakeBytes,
        constant: TakeTensor,
    ) -> *mut c_char;
    fn tikhonov_script_tensors(module: *const Raw, context: *mut c_void, visit: VisitTensor) -> *mut c_char;
    fn tikhonov_script_modules(module: *const Raw, context: *mut c_void, visit: VisitModule) -> *mut c_char;
}

/// A TorchScript module. Clones and children share their tensors with it.
#[derive(Debug)]
pub struct Module {
    raw: *mut Raw,
}

// SAFETY: the module is reached through this owner only, and libtorch's modules may move between threads.
unsafe impl Send for Module {}

/// What a tensor is to its module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Parameter,
    Buffer,
    /// Of the program; `state_dict()` does not list it.
    Constant,
}

/// A tensor that `state_dict()` lists.
#[derive(Debug)]
pub struct Entry {
    pub name: String,
    /// Shares its memory with the module.
    pub tensor: Tensor,
    /// Otherwise a buffer.
    pub is_parameter: bool,
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: the shim made it with `new`; nothing else frees it.
        unsafe { tikhonov_script_free(self.raw) }
    }
}

fn check(message: *mut c_char) -> Result<()> {
    super::check(message).map_err(|message| anyhow!("libtorch: {message}"))
}

fn text(text: &str) -> Result<CString> {
    CString::new(text).context("a NUL in a name")
}

pub(super) fn path_text(path: &Path) -> Result<CString> {
    use std::os::unix::ffi::OsStrExt;
    CString::new(path.as_os_str().as_bytes()).context("a NUL in a path")
}

/// Takes what the shim made.
fn made(make: impl FnOnce(*mut *mut Raw) -> *mut c_char) -> Result<Module> {
    let mut raw = null_mut();
    check(make(&mut raw))?;
    if raw.is_null() {
        return Err(anyhow!("libtorch made no module"));
    }
    Ok(Module { raw })
}

// Every call below hands the shim live modules, live tensors and NUL-terminated strings that outlive the
// call.
impl Module {
    /// An empty module in training mode, of a class of its own. `class` is a dotted name whose last part
    /// Python shows. Modules that become parent and child must be `peer`s of each other.
    pub fn new(class: &str, peer: Option<&Self>) -> Result<Self> {
        let class = text(class)?;
        // SAFETY: see above.
        made(|raw| unsafe {
            tikhonov_script_new(class.as_ptr(), peer.map_or(null(), |p| p.raw.cast_const()), raw)
        })
    }

    /// Adds a copy of `tensor`. Names must differ from those of everything else in the module.
    pub fn add_tensor(&mut self, name: &str, tensor: &Tensor, role: Role) -> Result<()> {
        let name = text(name)?;
        // SAFETY: see above.
        check(unsafe { tikhonov_script_add_tensor(self.raw, name.as_ptr(), tensor.as_ptr(), role as c_int) })
    }

    pub fn add_child(&mut self, name: &str, child: &Self) -> Result<()> {
        let name = text(name)?;
        // SAFETY: see above.
        check(unsafe { tikhonov_script_add_child(self.raw, name.as_ptr(), child.raw) })
    }

    /// Compiles methods: `def forward(self, x: Tensor) -> Tensor: …`. What they call must be there already.
    pub fn define(&mut self, source: &str) -> Result<()> {
        let source = text(source)?;
        // SAFETY: see above.
        check(unsafe { tikhonov_script_define(self.raw, source.as_ptr()) })
    }

    /// Adds an attribute of the type `List[str]`.
    pub fn add_texts(&mut self, name: &str, texts: &[String]) -> Result<()> {
        let texts = texts.iter().map(|one| text(one)).collect::<Result<Vec<_>>>()?;
        let pointers: Vec<_> = texts.iter().map(|text| text.as_ptr()).collect();
        self.add_list(name, 0, pointers.len(), pointers.as_ptr().cast())
    }

    /// Adds an attribute of the type `List[float]`.
    pub fn add_numbers(&mut self, name: &str, numbers: &[f64]) -> Result<()> {
        self.add_list(name, 1, numbers.len(), numbers.as_ptr().cast())
    }

    /// Adds an attribute of the type `List[int]`.
    pub fn add_integers(&mut self, name: &str, numbers: &[i64]) -> Result<()> {
        self.add_list(name, 2, numbers.len(), numbers.as_ptr().cast())
    }

    fn add_list(&mut self, name: &str, kind: c_int, count: usize, values: *const c_void) -> Result<()> {
        let name = text(name)?;
        // SAFETY: see above; `values` are `count` of what `kind` says, as the callers have them.
        check(unsafe { tikhonov_script_add_list(self.raw, name.as_ptr(), kind, count, values) })
    }

    /// The bytes of the file that `torch.jit.load` reads, with a file called `name` of the text `extra`
    /// inside.
    pub fn to_bytes(&self, name: &str, extra: &str) -> Result<Vec<u8>> {
        struct Taken {
            bytes: Vec<u8>,
            overflown: bool,
        }
        extern "C" fn take(context: *mut c_void, bytes: *const c_void, count: usize) {
            // SAFETY: `context` is the Taken below, `bytes` are `count` of them for the time of the call.
            let (taken, bytes) = unsafe {
                (&mut *context.cast::<Taken>(), std::slice::from_raw_parts(bytes.cast::<u8>(), count))
            };
            taken.overflown |= taken.bytes.try_reserve(count).is_err();
            if !taken.overflown {
                taken.bytes.extend_from_slice(bytes);
            }
        }
        let mut taken = Taken { bytes: Vec::new(), overflown: false };
        let (name, extra) = (text(name)?, text(extra)?);
        // SAFETY: see above; `taken` outlives the call and nothing else reads it meanwhile.
        check(unsafe {
            tikhonov_script_save(self.raw, name.as_ptr(), extra.as_ptr(), (&raw mut taken).cast(), take)
        })?;
        match taken.overflown {
            true => Err(anyhow!("out of memory for the bytes of the TorchScript file")),
            false => Ok(taken.bytes),
        }
    }

    /// Reads what [`Module::to_bytes`] or `torch.jit.save` gave. The file is a program: it must be trusted.
    /// libtorch is no reader for damaged files; see that it is whole first.
    pub fn load(path: &Path, device: Device) -> Result<Self> {
        let path = path_text(path)?;
        let cuda = match device {
            Device::Cuda(index) => index as i64,
            _ => -1,
        };
        // SAFETY: see above.
        made(|raw| unsafe { tikhonov_script_load(path.as_ptr(), cuda, raw) })
    }

    /// `forward` of one tensor to one tensor.
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let mut ys = null_mut();
        // SAFETY: see above.
        check(unsafe { tikhonov_script_forward(self.raw, xs.as_ptr(), &mut ys) })?;
        if ys.is_null() {
            return Err(anyhow!("forward made no tensor"));
        }
        // SAFETY: the shim made it with `new` for us to own.
        Ok(unsafe { Tensor::from_ptr(ys) })
    }

    /// Training or evaluation mode, for all modules inside too.
    pub fn set_training(&self, on: bool) -> Result<()> {
        // SAFETY: see above; the shim only stores a flag.
        check(unsafe { tikhonov_script_train(self.raw, on) })
    }

    /// The mode of the module at `path`, and of none inside.
    pub fn set_training_at(&self, path: &str, on: bool) -> Result<()> {
        let path = text(path)?;
        // SAFETY: see above; the shim only stores a flag.
        check(unsafe { tikhonov_script_train_at(self.raw, path.as_ptr(), on) })
    }

    /// Converts floating-point tensors, in place.
    pub fn set_kind(&self, kind: Kind) -> Result<()> {
        let like = Tensor::f_empty([0i64], (kind, Device::Cpu))?;
        // SAFETY: see above.
        check(unsafe { tikhonov_script_to(self.raw, like.as_ptr()) })
    }

    /// The module in evaluation mode with its weights as constants and batch norms folded into convolutions;
    /// `optimize` adds of `torch.jit.optimize_for_inference` what a file can hold. The attributes that `kept`
    /// names stay, where they are.
    pub fn frozen(&self, optimize: bool, kept: &[&str]) -> Result<Self> {
        let kept = kept.iter().map(|name| text(name)).collect::<Result<Vec<_>>>()?;
        let names: Vec<_> = kept.iter().map(|name| name.as_ptr()).collect();
        // SAFETY: see above; `names` are as many C strings as is said.
        made(|raw| unsafe { tikhonov_script_freeze(self.raw, optimize, names.as_ptr(), names.len(), raw) })
    }

    /// The ATen calls that the module, in evaluation mode, makes of `xs`: JSON, and the tensors that the
    /// state_dict lacks. `other` is a sample whose sizes differ wherever the input's may; both are the
    /// program's to change. The error says what is no flat list of calls.
    pub fn flat(&self, xs: &Tensor, other: &Tensor) -> Result<(Vec<u8>, Vec<Tensor>)> {
        extern "C" fn take(context: *mut c_void, bytes: *const c_void, count: usize) {
            // SAFETY: `context` is the pair below, `bytes` are `count` of them for the time of the call.
            unsafe {
                let (json, _) = &mut *context.cast::<(Vec<u8>, Vec<Tensor>)>();
                json.extend_from_slice(std::slice::from_raw_parts(bytes.cast::<u8>(), count));
            }
        }
        extern "C" fn constant(context: *mut c_void, tensor: *mut C_tensor) {
            // SAFETY: `context` is the pair below, `tensor` ours to own.
            unsafe { (*context.cast::<(Vec<u8>, Vec<Tensor>)>()).1.push(Tensor::from_ptr(tensor)) }
        }
        let mut taken = (Vec::new(), Vec::new());
        let context = (&raw mut taken).cast();
        // SAFETY: see above; `taken` outlives the call and nothing else reads it meanwhile.
        let message =
            unsafe { tikhonov_script_flat(self.raw, xs.as_ptr(), other.as_ptr(), context, take, constant) };
        super::check(message).map_err(|message| anyhow!("{message}"))?;
        Ok(taken)
    }

    /// What `state_dict()` lists, in its order.
    pub fn tensors(&self) -> Result<Vec<Entry>> {
        extern "C" fn visit(
            context: *mut c_void,
            name: *const c_char,
            is_parameter: bool,
            tensor: *mut C_tensor,
        ) {
            // SAFETY: `context` is the Vec below, `name` a C string for the time of the call, `tensor` ours
            // to own.
            unsafe {
                let entries = &mut *context.cast::<Vec<Entry>>();
                let name = CStr::from_ptr(name).to_string_lossy().into_owned();
                entries.push(Entry { name, tensor: Tensor::from_ptr(tensor), is_parameter });
            }
        }
        let mut entries: Vec<Entry> = Vec::new();
        // SAFETY: see above; `entries` outlives the call and nothing else reads it meanwhile.
        check(unsafe { tikhonov_script_tensors(self.raw, (&raw mut entries).cast(), visit) })?;
        Ok(entries)
    }

    /// (path, class) of this module (path empty) and of all inside, parents first.
    pub fn modules(&self) -> Result<Vec<(String, String)>> {
        extern "C" fn visit(context: *mut c_void, path: *const c_char, class: *const c_char) {
            // SAFETY: `context` is the Vec below, the texts are C strings for the time of the call.
            unsafe {
                let owned = |text| CStr::from_ptr(text).to_string_lossy().into_owned();
                (*context.cast::<Vec<(String, String)>>()).push((owned(path), owned(class)));
            }
        }
        let mut modules: Vec<(String, String)> = Vec::new();
        // SAFETY: as in `tensors`.
        check(unsafe { tikhonov_script_modules(self.raw, (&raw mut modules).cast(), visit) })?;
        Ok(modules)
    }
}

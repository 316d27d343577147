//! Numbers that steps work with again and again, such as means, kernels and weights of classes. A GPU gets them once:
//! each copy from memory that is not page-locked would make the host wait for all that the GPU was asked for.

use std::cell::RefCell;

use tch::{Device, Kind, Tensor};

use super::device::upload;

/// A list of numbers on a GPU.
struct Constant {
    name: &'static str,
    key: Vec<f64>,
    tensor: Tensor,
}

/// Lists of more numbers than these are forgotten in time: they belong to images of one size, which data may have many
/// of. What a CUDA graph reads is shorter, and stays.
const SHORT: usize = 4096;
/// How many long lists are kept.
const LONG_KEPT: usize = 32;

thread_local! {
    static KNOWN: RefCell<Vec<Constant>> = const { RefCell::new(Vec::new()) };
}

/// `values` as a tensor of `shape`, not to be written to. Panics as tch does.
pub fn constant(values: &[f64], shape: &[i64], options: (Kind, Device)) -> Tensor {
    constant_of("values", values, shape, options, || values.to_vec())
}

/// The same of values that `name` and `key` decide on: they are computed where no GPU has them yet.
pub fn constant_of(
    name: &'static str,
    key: &[f64],
    shape: &[i64],
    options: (Kind, Device),
    values: impl FnOnce() -> Vec<f64>,
) -> Tensor {
    let (kind, device) = options;
    let made = || Tensor::from_slice(&values()).view(shape).to_kind(kind);
    if device == Device::Cpu {
        return made();
    }
    KNOWN.with_borrow_mut(|known| {
        let is_it = |own: &Constant| {
            own.name == name
                && own.key == key
                && (own.tensor.kind(), own.tensor.device()) == options
                && own.tensor.size() == shape
        };
        if let Some(own) = known.iter().find(|own| is_it(own)) {
            return own.tensor.shallow_clone();
        }
        let tensor = upload(&made(), device);
        if tensor.numel() > SHORT {
            let is_long = |own: &Constant| own.tensor.numel() > SHORT;
            if known.iter().filter(|own| is_long(own)).count() >= LONG_KEPT
                && let Some(oldest) = known.iter().position(is_long)
            {
                known.remove(oldest);
            }
        }
        known.push(Constant { name, key: key.to_vec(), tensor: tensor.shallow_clone() });
        tensor
    })
}

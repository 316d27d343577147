//! Networks for Python: TorchScript and source code. Weights alone are the matter of [`crate::checkpoint`].

mod about;
mod classes;
mod plan;
pub mod python;
pub mod torchscript;

pub use about::About;

/// `basic_block` as `BasicBlock`.
fn camel_case(name: &str) -> String {
    let capital = |word: &str| {
        let mut letters = word.chars();
        letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
    };
    name.split(|c: char| !c.is_ascii_alphanumeric()).map(capital).collect()
}

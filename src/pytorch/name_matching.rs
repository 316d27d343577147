//! Brings the names of a file's tensors to those that a network wants: prefixes of wrappers stripped,
//! everything that does not fit listed at once.

use std::collections::{BTreeSet, HashMap};
use std::fmt;

use crate::util::yaml::nearest;

/// A tensor by name and shape.
pub type Named<'a> = (&'a str, &'a [i64]);

/// How the tensors found cover those wanted.
#[derive(Debug, Default, PartialEq)]
pub struct KeyMatch {
    /// Index of the wanted tensor, index of the found one.
    pub mapping: Vec<(usize, usize)>,
    /// The prefix or inner segment taken off the found names so that they fit, such as `module.`.
    pub stripped: Option<String>,
    /// Wanted and not found, with the nearest found name.
    pub missing: Vec<(String, Option<String>)>,
    /// Names in the file that the network does not have, with the nearest that it has.
    pub unexpected: Vec<(String, Option<String>)>,
    /// Name, shape wanted, shape found.
    pub mismatched: Vec<(String, Vec<i64>, Vec<i64>)>,
    /// Wanted `num_batches_tracked` (indices) that files before PyTorch 0.4.1 lack: zero does for them.
    pub zeros: Vec<usize>,
}

impl KeyMatch {
    /// Whether every wanted tensor has its values and none is left over.
    pub fn is_complete(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.mismatched.is_empty()
    }

    /// Forgets every tensor, wanted or found, whose name `leaves_out` accepts.
    pub fn ignore(&mut self, wanted: &[Named], leaves_out: impl Fn(&str) -> bool) {
        self.mapping.retain(|&(at, _)| !leaves_out(wanted[at].0));
        self.zeros.retain(|&at| !leaves_out(wanted[at].0));
        self.missing.retain(|(name, _)| !leaves_out(name));
        self.mismatched.retain(|(name, ..)| !leaves_out(name));
        let stripped = self.stripped.clone().unwrap_or_default();
        self.unexpected.retain(|(name, _)| !leaves_out(name.strip_prefix(stripped.as_str()).unwrap_or(name)));
    }
}

/// Matches `found` with `wanted` by name. Prefixes that most found names share (`module.`, `_orig_mod.`,
/// `model.`, `module.dncnn.` …) and the segments `module.` and `_orig_mod.` anywhere are stripped when, and
/// only when, more names fit then.
pub fn match_keys(wanted: &[Named], found: &[Named]) -> KeyMatch {
    let by_name: HashMap<&str, usize> = wanted.iter().enumerate().map(|(i, w)| (w.0, i)).collect();
    let score = |strip: &Strip| {
        // Wanted tensors that are covered, each once: two copies of the weights in one file are no better
        // than one.
        let (mut names, mut shapes) = (BTreeSet::new(), BTreeSet::new());
        for (name, shape) in found {
            if let Some(&index) = by_name.get(&*strip.apply(name)) {
                names.insert(index);
                if wanted[index].1 == *shape {
                    shapes.insert(index);
                }
            }
        }
        (names.len(), shapes.len())
    };
    // The first of equals wins: least is stripped.
    let mut best = (Strip::Nothing, score(&Strip::Nothing));
    for strip in candidates(found) {
        let fits = score(&strip);
        if fits > best.1 {
            best = (strip, fits);
        }
    }
    compare(wanted, found, &by_name, &best.0)
}

fn compare(wanted: &[Named], found: &[Named], by_name: &HashMap<&str, usize>, strip: &Strip) -> KeyMatch {
    let mut fit = KeyMatch { stripped: strip.name(), ..KeyMatch::default() };
    // A name that is wanted as it is goes before one that is so only when stripped.
    let mut taken: HashMap<usize, usize> = HashMap::new();
    for (index, (name, _)) in found.iter().enumerate() {
        if let Some(&at) = by_name.get(*name).filter(|_| strip.apply(name) == *name) {
            taken.entry(at).or_insert(index);
        }
    }
    let mut unexpected = Vec::new();
    for (index, (name, shape)) in found.iter().enumerate() {
        match by_name.get(&*strip.apply(name)) {
            Some(&at) if *taken.entry(at).or_insert(index) == index => {
                if wanted[at].1 == *shape {
                    fit.mapping.push((at, index));
                } else {
                    fit.mismatched.push((wanted[at].0.to_owned(), wanted[at].1.to_vec(), shape.to_vec()));
                }
            }
            _ => unexpected.push((*name, *shape)),
        }
    }
    let mut missing = Vec::new();
    for (index, (name, shape)) in wanted.iter().enumerate() {
        if taken.contains_key(&index) {
        } else if shape.is_empty() && name.ends_with("num_batches_tracked") {
            fit.zeros.push(index);
        } else {
            missing.push((*name, *shape));
        }
    }
    let stripped: Vec<(String, &[i64])> =
        unexpected.iter().map(|(name, shape)| (strip.apply(name).into_owned(), *shape)).collect();
    let plain: Vec<Named> = stripped.iter().map(|(name, shape)| (name.as_str(), *shape)).collect();
    fit.missing = missing.iter().map(|one| (one.0.to_owned(), near(*one, &plain))).collect();
    fit.unexpected = (unexpected.iter().zip(&plain))
        .map(|((name, _), plain)| ((*name).to_owned(), near(*plain, &missing)))
        .collect();
    fit.mapping.sort_unstable();
    fit
}

/// A way to change the found names.
enum Strip {
    Nothing,
    Prefix(String),
    /// Every occurrence of the segment, which ends with a dot.
    Segment(&'static str),
}

impl Strip {
    fn apply<'a>(&self, name: &'a str) -> std::borrow::Cow<'a, str> {
        match self {
            Strip::Nothing => name.into(),
            Strip::Prefix(prefix) => name.strip_prefix(prefix.as_str()).unwrap_or(name).into(),
            Strip::Segment(segment) => {
                let inner = format!(".{segment}");
                let name = name.strip_prefix(segment).unwrap_or(name);
                if name.contains(&inner) { name.replace(&inner, ".").into() } else { name.into() }
            }
        }
    }

    fn name(&self) -> Option<String> {
        match self {
            Strip::Nothing => None,
            Strip::Prefix(prefix) => Some(prefix.clone()),
            Strip::Segment(segment) => Some((*segment).to_owned()),
        }
    }
}

/// Prefixes of up to four segments that at least half of the names share, the shortest first, then the
/// segments.
fn candidates(found: &[Named]) -> Vec<Strip> {
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for (name, _) in found {
        for (at, _) in name.match_indices('.').take(4) {
            *counts.entry(&name[..=at]).or_default() += 1;
        }
    }
    let mut common: Vec<&str> =
        counts.into_iter().filter(|(_, count)| 2 * count >= found.len()).map(|(prefix, _)| prefix).collect();
    common.sort_by_key(|prefix| (prefix.len(), *prefix));
    let prefixes = common.into_iter().map(|prefix| Strip::Prefix(prefix.to_owned()));
    prefixes.chain([Strip::Segment("module."), Strip::Segment("_orig_mod.")]).collect()
}

/// The most similar of `others`, if one is similar at all, those of the same shape first. Files with
/// thousands of strange names are not searched.
fn near((name, shape): Named, others: &[Named]) -> Option<String> {
    let searched = || others.iter().take(500);
    let alike = searched().filter(|other| other.1 == shape).map(|other| other.0);
    nearest(name, alike).or_else(|| nearest(name, searched().map(|other| other.0))).map(str::to_owned)
}

/// Everything that does not fit, one line each; for error texts.
impl fmt::Display for KeyMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LINES: usize = 20;
        let hint =
            |near: &Option<String>| near.as_ref().map_or(String::new(), |near| format!(" (near: {near})"));
        let mut section = |title: &str, lines: Vec<String>| -> fmt::Result {
            if lines.is_empty() {
                return Ok(());
            }
            writeln!(f, "{} {title}:", lines.len())?;
            lines.iter().take(LINES).try_for_each(|line| writeln!(f, "  {line}"))?;
            if lines.len() > LINES {
                writeln!(f, "  … and {} more", lines.len() - LINES)?;
            }
            Ok(())
        };
        section(
            "missing in the file",
            self.missing.iter().map(|(n, near)| format!("{n}{}", hint(near))).collect(),
        )?;
        section(
            "unexpected in the file",
            self.unexpected.iter().map(|(n, near)| format!("{n}{}", hint(near))).collect(),
        )?;
        let shapes = self
            .mismatched
            .iter()
            .map(|(n, w, have)| format!("{n}: {have:?} in the file, {w:?} in the network"));
        section("of another shape", shapes.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const W: &[i64] = &[4, 3];
    const B: &[i64] = &[4];

    #[test]
    fn exact_names_win_over_stripped_ones_wherever_they_stand() {
        let wanted = [("a.weight", W), ("a.bias", B)];
        let exact = [("a.weight", W), ("a.bias", B)];
        let average = [("ema.a.weight", W), ("ema.a.bias", B)];
        for (found, first) in [([average, exact].concat(), 2), ([exact, average].concat(), 0)] {
            let fit = match_keys(&wanted, &found);
            assert_eq!((fit.mapping.clone(), fit.stripped.clone()), (vec![(0, first), (1, first + 1)], None));
            assert_eq!(fit.unexpected.len(), 2);
        }
        // One name as it is, the other under a prefix: both are found, and the exact one is not replaced.
        let found = [("m.a.weight", W), ("m.a.bias", B), ("a.weight", W)];
        let fit = match_keys(&wanted, &found);
        assert_eq!((fit.mapping, fit.stripped.as_deref()), (vec![(0, 2), (1, 1)], Some("m.")));
    }

    #[test]
    fn the_nearest_name_is_of_the_same_shape() {
        let fit = match_keys(&[("a.conv.weight", W)], &[("a.cony.weight", B), ("a.conv_1.weight", W)]);
        assert_eq!(fit.missing, [("a.conv.weight".to_owned(), Some("a.conv_1.weight".to_owned()))]);
    }

    #[test]
    fn nothing_is_stripped_when_the_names_fit() {
        let names = [("model.a.weight", W), ("model.a.bias", B)];
        let fit = match_keys(&names, &names);
        assert_eq!((fit.stripped.clone(), fit.mapping.clone()), (None, vec![(0, 0), (1, 1)]));
        assert!(fit.is_complete());
    }

    #[test]
    fn prefixes_of_several_segments_are_stripped_together() {
        let fit = match_keys(
            &[("0.weight", W), ("0.bias", B)],
            &[("module.dncnn.0.bias", B), ("module.dncnn.0.weight", W)],
        );
        assert_eq!(
            (fit.stripped.as_deref(), &fit.mapping[..]),
            (Some("module.dncnn."), &[(0, 1), (1, 0)][..])
        );
    }

    #[test]
    fn a_wrapper_inside_a_name_is_stripped() {
        let wanted = [("features.0.weight", W), ("classifier.bias", B)];
        let fit = match_keys(&wanted, &[("features.module.0.weight", W), ("classifier.bias", B)]);
        assert_eq!(fit.stripped.as_deref(), Some("module."));
        assert!(fit.is_complete());
    }

    #[test]
    fn everything_that_does_not_fit_is_listed_at_once_with_the_nearest_names() {
        let wanted = [("conv1.weight", W), ("bn.num_batches_tracked", &[][..]), ("fc.bias", B), ("x", B)];
        let found = [("conv_1.weight", W), ("fc.bias", &[10][..]), ("extra", B)];
        let fit = match_keys(&wanted, &found);
        assert_eq!(fit.missing, [("conv1.weight".into(), Some("conv_1.weight".into())), ("x".into(), None)]);
        assert_eq!(
            fit.unexpected,
            [("conv_1.weight".into(), Some("conv1.weight".into())), ("extra".into(), None)]
        );
        assert_eq!(fit.mismatched, [("fc.bias".into(), vec![4], vec![10])]);
        assert_eq!(fit.zeros, [1]);
    }
}

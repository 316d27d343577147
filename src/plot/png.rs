//! Our own SVG drawings as PNG pictures, for those who have only a terminal. The font comes with the program.

use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use resvg::tiny_skia::{Color, Pixmap, Transform};
use resvg::usvg::{Options, Tree, fontdb::Database};
use skrifa::MetadataProvider;

/// Pixels per unit of the drawing: text stays sharp.
const SCALE: f32 = 2.0;

/// Whether the font that comes with the program has every letter of `text`.
pub fn can_write(text: &str) -> bool {
    let Ok(font) = skrifa::FontRef::new(dejavu::sans::regular()) else { return false };
    let letters = font.charmap();
    text.chars().all(|c| c.is_whitespace() || letters.map(c).is_some())
}

/// The drawing in its light colours on white. Fails on what is no SVG and on sizes that no memory holds.
pub fn png(svg: &str) -> Result<Vec<u8>> {
    let mut fonts = Database::new();
    fonts.load_font_data(dejavu::sans::regular().to_vec());
    fonts.load_font_data(dejavu::sans::bold().to_vec());
    let family = "DejaVu Sans".to_owned();
    fonts.set_sans_serif_family(&family);
    let options = Options { font_family: family, fontdb: Arc::new(fonts), ..Options::default() };
    let tree = Tree::from_str(svg, &options).context("reading the drawing")?;
    let size = tree.size().to_int_size().scale_by(SCALE).context("the drawing is too large")?;
    let mut pixels = Pixmap::new(size.width(), size.height()).context("the drawing is too large")?;
    pixels.fill(Color::WHITE);
    resvg::render(&tree, Transform::from_scale(SCALE, SCALE), &mut pixels.as_mut());
    pixels.encode_png().map_err(|error| anyhow!("encoding the picture: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_drawn_with_the_font_that_comes_along_and_dark_colours_are_left_out() {
        let svg = "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 100 50' font-family='sans-serif'>\
                   <style>svg{color:#222}@media(prefers-color-scheme:dark){svg{background:#000}}text{fill:currentColor}\
                   .a{fill:#ff0000}</style><rect class='a' x='50' width='50' height='50'/><text x='2' y='30'>λ² ±</text></svg>";
        let picture = image::load_from_memory(&png(svg).unwrap()).unwrap().into_rgb8();
        assert_eq!(picture.dimensions(), (200, 100));
        assert_eq!((picture[(2, 2)].0, picture[(150, 50)].0), ([255; 3], [255, 0, 0]));
        let dark = (0..100).flat_map(|x| (0..100).map(move |y| (x, y))).filter(|&at| picture[at].0[0] < 100);
        assert!(dark.count() > 100, "letters");
        assert!(png("<svg").is_err());
        assert!(can_write("Grüße, λ² Ж …") && !can_write("郁金香"));
    }
}

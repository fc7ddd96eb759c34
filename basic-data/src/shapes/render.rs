//! Draws scenes. The same geometry gives the image and the object shown by each pixel.

use image::{Rgb, RgbImage};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::scene::{Colour, Object, Scene, Shape, Size};

/// The side of an image in pixels.
pub const IMAGE_SIDE: usize = 64;
/// The side of a cell in pixels.
const CELL: f32 = IMAGE_SIDE as f32 / 3.0;
/// Samples per pixel and axis for anti-aliasing.
const SUBSAMPLES: usize = 4;
/// The smallest distance of an object from the edge of its cell in pixels, so that no pixel shows two objects.
const MARGIN: f32 = 0.35;
/// The largest distance between the centres of an object and of its cell in pixels.
const MAX_JITTER: f32 = 3.0;

/// Where and how large an object is drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Placement {
    shape: Shape,
    /// The centre `(x, y)` in pixels from the top left corner of the image.
    pub centre: (f32, f32),
    /// Pixels per unit of the shape's outline, which is about two units across.
    pub scale: f32,
    /// Cosine and sine of the rotation.
    turn: (f32, f32),
}

/// Outlines of the shapes, about two units across; x points right and y down.
const TRIANGLE: [(f32, f32); 3] = [(0.0, -1.0), (1.05, 0.82), (-1.05, 0.82)];
const DIAMOND: [(f32, f32); 4] = [(0.0, -1.15), (0.85, 0.0), (0.0, 1.15), (-0.85, 0.0)];
const SQUARE: [(f32, f32); 4] = [(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)];
const CROSS: [(f32, f32); 12] = [
    (-0.36, -0.98),
    (0.36, -0.98),
    (0.36, -0.36),
    (0.98, -0.36),
    (0.98, 0.36),
    (0.36, 0.36),
    (0.36, 0.98),
    (-0.36, 0.98),
    (-0.36, 0.36),
    (-0.98, 0.36),
    (-0.98, -0.36),
    (-0.36, -0.36),
];
/// Alternating radii of 1.12 and 0.58, every 36 degrees. The coordinates are written out because sines differ between
/// platforms.
const STAR: [(f32, f32); 10] = [
    (0.0, -1.12),
    (0.3409, -0.4692),
    (1.0652, -0.3461),
    (0.5516, 0.1792),
    (0.6583, 0.9061),
    (0.0, 0.58),
    (-0.6583, 0.9061),
    (-0.5516, 0.1792),
    (-1.0652, -0.3461),
    (-0.3409, -0.4692),
];

/// The corners of a shape's outline; empty for the circle, whose radius is one unit.
fn outline(shape: Shape) -> &'static [(f32, f32)] {
    match shape {
        Shape::Circle => &[],
        Shape::Square => &SQUARE,
        Shape::Triangle => &TRIANGLE,
        Shape::Star => &STAR,
        Shape::Cross => &CROSS,
        Shape::Diamond => &DIAMOND,
    }
}

/// Red, green and blue of a colour, before jitter and lighting.
fn rgb(colour: Colour) -> [f32; 3] {
    match colour {
        Colour::Red => [215.0, 35.0, 40.0],
        Colour::Green => [45.0, 165.0, 50.0],
        Colour::Blue => [45.0, 75.0, 225.0],
        Colour::Yellow => [235.0, 220.0, 45.0],
        Colour::Purple => [165.0, 50.0, 195.0],
        Colour::Orange => [240.0, 130.0, 25.0],
        Colour::White => [238.0, 238.0, 238.0],
        Colour::Cyan => [60.0, 215.0, 225.0],
    }
}

impl Placement {
    fn random<R: Rng + ?Sized>(object: &Object, rng: &mut R) -> Self {
        let scale = match object.size {
            Size::Small => rng.random_range(4.5..5.3_f32),
            Size::Large => rng.random_range(8.0..8.6_f32),
        };
        // The rational parametrization of the circle gives exact rotations without sine and cosine. The limit 0.09 is
        // the tangent of half of the largest angle, which is about 10 degrees.
        let t = rng.random_range(-0.09..0.09_f32);
        let turn = ((1.0 - t * t) / (1.0 + t * t), 2.0 * t / (1.0 + t * t));
        let mut placement = Self { shape: object.shape, centre: (0.0, 0.0), scale, turn };
        let room = (CELL / 2.0 - MARGIN - placement.reach()).clamp(0.0, MAX_JITTER);
        let mut jittered = |cell: usize| (cell as f32 + 0.5) * CELL + room * rng.random_range(-1.0..1.0_f32);
        placement.centre = (jittered(object.place.column()), jittered(object.place.row()));
        placement
    }

    /// The largest distance along an axis from the centre to the outline, in pixels.
    pub fn reach(&self) -> f32 {
        let (cos, sin) = self.turn;
        let extent = outline(self.shape)
            .iter()
            .flat_map(|&(x, y)| [cos * x - sin * y, sin * x + cos * y])
            .fold(0.0_f32, |reach, along| reach.max(along.abs()));
        self.scale * if self.shape == Shape::Circle { 1.0 } else { extent }
    }

    /// Whether the object covers the point, given in pixels from the image's top left corner.
    pub fn covers(&self, x: f32, y: f32) -> bool {
        let (dx, dy) = ((x - self.centre.0) / self.scale, (y - self.centre.1) / self.scale);
        let (cos, sin) = self.turn;
        let (x, y) = (cos * dx + sin * dy, cos * dy - sin * dx);
        if self.shape == Shape::Circle {
            return x * x + y * y <= 1.0;
        }
        // Even-odd rule: count the edges that a ray to the right crosses.
        let corners = outline(self.shape);
        let mut inside = false;
        let mut from = corners[corners.len() - 1];
        for &to in corners {
            if (from.1 > y) != (to.1 > y) && x < (to.0 - from.0) * (y - from.1) / (to.1 - from.1) + from.0 {
                inside = !inside;
            }
            from = to;
        }
        inside
    }

    /// Every pixel that the object touches, as its index and the number of its `SUBSAMPLES * SUBSAMPLES` samples that
    /// are covered.
    fn touched(&self) -> Vec<(usize, usize)> {
        let reach = self.reach();
        let range = |centre: f32| {
            let low = (centre - reach).max(0.0) as usize;
            low..((centre + reach) as usize + 1).min(IMAGE_SIDE)
        };
        let offset = |sample: usize| (sample as f32 + 0.5) / SUBSAMPLES as f32;
        let mut touched = Vec::new();
        for row in range(self.centre.1) {
            for column in range(self.centre.0) {
                let hits = (0..SUBSAMPLES * SUBSAMPLES)
                    .filter(|sample| {
                        let x = column as f32 + offset(sample % SUBSAMPLES);
                        self.covers(x, row as f32 + offset(sample / SUBSAMPLES))
                    })
                    .count();
                if hits > 0 {
                    touched.push((row * IMAGE_SIDE + column, hits));
                }
            }
        }
        touched
    }
}

/// Where the objects of a scene are drawn with this seed, in the order of [`Scene::objects`].
pub fn layout(scene: &Scene, render_seed: u64) -> Vec<Placement> {
    let mut rng = ChaCha8Rng::seed_from_u64(render_seed);
    scene.objects().iter().map(|object| Placement::random(object, &mut rng)).collect()
}

/// The index of the object that covers most of each pixel: [`IMAGE_SIDE`]² entries in reading order, `None` where at
/// least half of the pixel shows the background.
pub fn coverage(scene: &Scene, render_seed: u64) -> Vec<Option<usize>> {
    let mut pixels = vec![None; IMAGE_SIDE * IMAGE_SIDE];
    for (index, placement) in layout(scene, render_seed).iter().enumerate() {
        for (pixel, hits) in placement.touched() {
            if 2 * hits > SUBSAMPLES * SUBSAMPLES {
                pixels[pixel] = Some(index);
            }
        }
    }
    pixels
}

/// The image of a scene: [`IMAGE_SIDE`] x [`IMAGE_SIDE`] pixels with a dim background, jitter in place, size, angle and
/// colour, and noise on every pixel. The same scene and seed give the same bytes.
pub fn render(scene: &Scene, render_seed: u64) -> RgbImage {
    // A stream separate from the layout's, so that the geometry does not depend on the amount of noise drawn.
    let mut rng = ChaCha8Rng::seed_from_u64(render_seed);
    rng.set_stream(1);
    let light = rng.random_range(0.85..1.08_f32);
    let noise = rng.random_range(3.0..14.0_f32);
    let grey = rng.random_range(40.0..85.0_f32);
    let background: [f32; 3] = std::array::from_fn(|_| grey + rng.random_range(-10.0..10.0_f32));

    let mut canvas = vec![background; IMAGE_SIDE * IMAGE_SIDE];
    for (object, placement) in scene.objects().iter().zip(layout(scene, render_seed)) {
        let paint = rgb(object.colour).map(|channel| channel + rng.random_range(-16.0..16.0_f32));
        for (pixel, hits) in placement.touched() {
            let share = hits as f32 / (SUBSAMPLES * SUBSAMPLES) as f32;
            for (channel, paint) in canvas[pixel].iter_mut().zip(paint) {
                *channel += share * (paint - *channel);
            }
        }
    }

    let mut image = RgbImage::new(IMAGE_SIDE as u32, IMAGE_SIDE as u32);
    for (pixel, colour) in image.pixels_mut().zip(canvas) {
        *pixel = Rgb(colour.map(|channel| {
            // The sum of two uniform draws has a triangular distribution, which is close to a Gaussian and exact on
            // every platform.
            let grain = rng.random_range(-1.0..1.0_f32) + rng.random_range(-1.0..1.0_f32);
            (channel * light + grain * noise + 0.5).clamp(0.0, 255.0) as u8
        }));
    }
    image
}

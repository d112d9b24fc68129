//! Chance from a seed, so that every run asks the same.

/// SplitMix64: small, fast, and good enough to draw keys and bytes from.
#[derive(Clone)]
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Chance {
        Chance(seed)
    }

    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0 up to but not 1.
    fn share(&mut self) -> f64 {
        (self.draw() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Letters, digits and two signs, which JSON leaves as they are and no compression makes much shorter.
    pub fn text(&mut self, length: usize) -> String {
        const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let mut text = String::with_capacity(length + 10);
        while text.len() < length {
            let drawn = self.draw();
            text.extend((0..10).map(|i| char::from(LETTERS[(drawn >> (6 * i)) as usize % 64])));
        }
        text.truncate(length);
        text
    }
}

/// Ranks of which the k-th is drawn in proportion to `k^-exponent`.
pub struct Zipf {
    cumulative: Vec<f64>,
}

impl Zipf {
    pub fn new(ranks: usize, exponent: f64) -> Zipf {
        let mut sum = 0.0;
        let weights = (1..=ranks).map(|rank| (rank as f64).powf(-exponent));
        let mut cumulative: Vec<f64> = weights
            .map(|weight| {
                sum += weight;
                sum
            })
            .collect();
        cumulative.iter_mut().for_each(|value| *value /= sum);
        Zipf { cumulative }
    }

    /// A rank, from 0.
    pub fn draw(&self, chance: &mut Chance) -> u32 {
        let share = chance.share();
        let rank = self.cumulative.partition_point(|value| *value <= share);
        rank.min(self.cumulative.len() - 1) as u32
    }
}

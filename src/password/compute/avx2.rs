//! Argon2 for processors with AVX2: `G` in vectors, and around it what the argon2 crate has but does not export.
//! Sections and names are those of RFC 9106.

use std::{
    arch::x86_64::{
        __m256i, _MM_HINT_T0, _mm_cvtsi128_si64, _mm_prefetch, _mm256_add_epi64, _mm256_alignr_epi8,
        _mm256_castsi256_si128, _mm256_extract_epi64, _mm256_mul_epu32, _mm256_or_si256,
        _mm256_permute4x64_epi64, _mm256_set_epi64x, _mm256_slli_epi64, _mm256_srli_epi64, _mm256_xor_si256,
    },
    array,
};

use argon2::{Algorithm, Block, Error, Version};
use blake2::{
    Blake2bVarCore,
    digest::{
        block_api::{UpdateCore, VariableOutputCore},
        block_buffer::LazyBuffer,
    },
};
use zeroize::{Zeroize, Zeroizing};

use super::Inputs;

/// Slices of a lane.
const SLICES: usize = 4;

/// Words of a block.
const WORDS: usize = Block::SIZE / size_of::<u64>();

/// Proof that the processor has AVX2.
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

impl Avx2 {
    pub(super) fn detect() -> Option<Self> {
        is_x86_feature_detected!("avx2").then_some(Self(()))
    }

    /// Computes the tag (section 3.2), of 1 to 64 bytes.
    #[expect(unsafe_code, reason = "calls what is compiled for some processors alone")]
    pub(super) fn hash_into(
        self,
        inputs: &Inputs<'_>,
        output: &mut [u8],
        blocks: &mut [Block],
    ) -> Result<(), Error> {
        let fill = Fill::new(inputs);
        let blocks = blocks.get_mut(..inputs.params.block_count()).ok_or(Error::MemoryTooLittle)?;
        let h0 = h0(inputs, output)?;
        for (lane, blocks) in (0..).zip(blocks.chunks_exact_mut(fill.lane_length)) {
            fill_first(&mut blocks[0], &*h0, 0, lane)?;
            fill_first(&mut blocks[1], &*h0, 1, lane)?;
        }
        // SAFETY: there is a `self` only if the processor has AVX2, the only feature that `run` is compiled for.
        unsafe { fill.run(blocks) };
        let mut c = Zeroizing::new(Block::new());
        for lane in blocks.chunks_exact(fill.lane_length) {
            *c ^= &lane[fill.lane_length - 1];
        }
        let mut bytes = Zeroizing::new([0; Block::SIZE]);
        for (bytes, word) in bytes.as_chunks_mut().0.iter_mut().zip((*c).as_ref()) {
            *bytes = word.to_le_bytes();
        }
        blake2b(&[&length(output)?, &*bytes], output)
    }
}

/// `H_0` (section 3.2): the hash of all inputs.
fn h0(inputs: &Inputs<'_>, output: &[u8]) -> Result<Zeroizing<[u8; 64]>, Error> {
    let Inputs { algorithm, version, params, secret, password, salt } = inputs;
    let le32 = u32::to_le_bytes;
    let mut h0 = Zeroizing::new([0; 64]);
    blake2b(
        &[
            &le32(params.p_cost()),
            &length(output)?,
            &le32(params.m_cost()),
            &le32(params.t_cost()),
            &le32(u32::from(*version)),
            &le32(*algorithm as u32),
            &length(password)?,
            password,
            &length(salt)?,
            salt,
            &length(secret)?,
            secret,
            &length(params.data())?,
            params.data(),
        ],
        &mut *h0,
    )?;
    Ok(h0)
}

/// The first or second block of a lane (section 3.2): `H'` of its place, as long as a block (section 3.3).
fn fill_first(block: &mut Block, h0: &[u8], index: u32, lane: u32) -> Result<(), Error> {
    let mut bytes = Zeroizing::new([0; Block::SIZE]);
    let mut v = Zeroizing::new([0; 64]);
    blake2b(&[&length(&*bytes)?, h0, &index.to_le_bytes(), &lane.to_le_bytes()], &mut *v)?;
    let (halves, last) = bytes.split_at_mut(Block::SIZE - v.len());
    for half in halves.as_chunks_mut::<32>().0 {
        half.copy_from_slice(&v[..32]);
        let previous = v.clone();
        blake2b(&[&*previous], &mut *v)?;
    }
    last.copy_from_slice(&*v);
    for (word, &bytes) in block.as_mut().iter_mut().zip(bytes.as_chunks().0) {
        *word = u64::from_le_bytes(bytes);
    }
    Ok(())
}

/// BLAKE2b of the parts, one after the other: 1 to 64 bytes.
fn blake2b(parts: &[&[u8]], output: &mut [u8]) -> Result<(), Error> {
    let mut state = Blake2bVarCore::new(output.len()).map_err(|_| Error::OutputTooLong)?;
    let mut buffer = LazyBuffer::default();
    for part in parts {
        buffer.digest_blocks(part, |blocks| state.update_blocks(blocks));
    }
    let mut whole = Default::default();
    state.finalize_variable_core(&mut buffer, &mut whole);
    output.copy_from_slice(&whole[..output.len()]);
    whole.zeroize();
    Ok(())
}

/// `LE32` of a length.
fn length(bytes: &[u8]) -> Result<[u8; 4], Error> {
    u32::try_from(bytes.len()).map(u32::to_le_bytes).map_err(|_| Error::PwdTooLong)
}

/// The passes over the memory (section 3.2, steps 5 and 6).
struct Fill {
    algorithm: Algorithm,
    version: Version,
    passes: usize,
    lanes: usize,
    lane_length: usize,
}

/// Where a lane and a slice meet, in one pass.
#[derive(Clone, Copy)]
struct Segment {
    pass: usize,
    slice: usize,
    lane: usize,
}

impl Fill {
    fn new(inputs: &Inputs<'_>) -> Self {
        let lanes = inputs.params.p_cost() as usize;
        Self {
            algorithm: inputs.algorithm,
            version: inputs.version,
            passes: inputs.params.t_cost() as usize,
            lanes,
            lane_length: inputs.params.block_count() / lanes,
        }
    }

    #[target_feature(enable = "avx2")]
    fn run(&self, blocks: &mut [Block]) {
        for pass in 0..self.passes {
            for slice in 0..SLICES {
                for lane in 0..self.lanes {
                    self.run_segment(Segment { pass, slice, lane }, blocks);
                }
            }
        }
    }

    #[target_feature(enable = "avx2")]
    fn run_segment(&self, segment: Segment, blocks: &mut [Block]) {
        let Segment { pass, slice, lane } = segment;
        let length = self.lane_length / SLICES;
        let is_independent = match self.algorithm {
            Algorithm::Argon2d => false,
            Algorithm::Argon2i => true,
            Algorithm::Argon2id => pass == 0 && slice < SLICES / 2,
        };
        let numbers = [pass, lane, slice, blocks.len(), self.passes, self.algorithm as usize];
        let mut addresses = Addresses::new(numbers.map(|number| number as u64));
        let is_xored = pass > 0 && self.version == Version::V0x13;
        // The first two blocks of a lane have been filled already.
        let first = if pass == 0 && slice == 0 { 2 } else { 0 };
        let begin = lane * self.lane_length + slice * length;
        let before = if slice + first == 0 { begin + self.lane_length } else { begin + first } - 1;

        let mut z = State::of(&blocks[before]);
        let j = if is_independent { addresses.at(first) } else { z.first_word() };
        let mut reference = self.reference(segment, first, j);
        for index in first..length {
            z = z.xor(State::of(&blocks[reference]));
            let block = &blocks[begin + index];
            let r = if is_xored { z.xor(State::of(block)) } else { z };
            z.permute_rows();
            z.permute_columns(0);
            // The first column holds the first word, and with it the next reference, whose block may be far away.
            if index + 1 < length {
                let j =
                    if is_independent { addresses.at(index + 1) } else { z.first_word() ^ r.first_word() };
                reference = self.reference(segment, index + 1, j);
                prefetch(&blocks[reference]);
            }
            for columns in 1..4 {
                z.permute_columns(columns);
            }
            z = z.xor(r);
            z.store(&mut blocks[begin + index]);
        }
    }

    /// The block that is combined with the previous one into a block of this segment (section 3.4.2).
    fn reference(&self, segment: Segment, index: usize, j: u64) -> usize {
        let Segment { pass, slice, lane } = segment;
        let length = self.lane_length / SLICES;
        let (j1, j2) = (j & 0xffff_ffff, (j >> 32) as usize);
        let chosen = if pass == 0 && slice == 0 { lane } else { j2 % self.lanes };
        // How many blocks there are to choose from: those of finished segments, and of this one all but the last.
        let finished = if pass == 0 { slice * length } else { self.lane_length - length };
        let area = if chosen == lane { finished + index - 1 } else { finished - usize::from(index == 0) };
        let x = (j1 * j1) >> 32;
        let back = ((area as u64 * x) >> 32) as usize;
        let oldest = if pass == 0 { 0 } else { (slice + 1) * length };
        chosen * self.lane_length + (oldest + area - 1 - back) % self.lane_length
    }
}

/// The values `J` that do not depend on the password (section 3.4.1.2).
struct Addresses {
    input: Block,
    values: Block,
}

impl Addresses {
    /// The addresses of a segment.
    fn new(numbers: [u64; 6]) -> Self {
        let mut input = Block::new();
        input.as_mut()[..6].copy_from_slice(&numbers);
        Self { input, values: Block::new() }
    }

    /// The address for a block of the segment.
    #[target_feature(enable = "avx2")]
    fn at(&mut self, index: usize) -> u64 {
        let counter = (index / WORDS + 1) as u64;
        if self.input.as_ref()[6] != counter {
            self.input.as_mut()[6] = counter;
            // `G` of zeros and the input, twice.
            let mut z = State::of(&self.input);
            for _ in 0..2 {
                let r = z;
                z.permute_rows();
                for columns in 0..4 {
                    z.permute_columns(columns);
                }
                z = z.xor(r);
            }
            z.store(&mut self.values);
        }
        self.values.as_ref()[index % WORDS]
    }
}

/// A block as eight rows of four vectors. The matrix of section 3.5 has two words in each of its places.
#[derive(Clone, Copy)]
struct State([__m256i; 32]);

impl State {
    #[inline]
    #[target_feature(enable = "avx2")]
    fn of(block: &Block) -> Self {
        let vectors = block.as_ref().as_chunks::<4>().0;
        Self(array::from_fn(|i| {
            let [a, b, c, d] = vectors[i].map(u64::cast_signed);
            _mm256_set_epi64x(d, c, b, a)
        }))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn store(&self, block: &mut Block) {
        for (vector, &x) in block.as_mut().as_chunks_mut::<4>().0.iter_mut().zip(&self.0) {
            *vector = [
                _mm256_extract_epi64::<0>(x),
                _mm256_extract_epi64::<1>(x),
                _mm256_extract_epi64::<2>(x),
                _mm256_extract_epi64::<3>(x),
            ]
            .map(i64::cast_unsigned);
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn first_word(&self) -> u64 {
        _mm_cvtsi128_si64(_mm256_castsi256_si128(self.0[0])).cast_unsigned()
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn xor(self, other: Self) -> Self {
        Self(array::from_fn(|i| _mm256_xor_si256(self.0[i], other.0[i])))
    }

    /// `P` of each row: four vectors, which are the rows of the matrix in section 3.6.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn permute_rows(&mut self) {
        for [a, b, c, d] in self.0.as_chunks_mut::<4>().0 {
            [*a, *b, *c, *d] = mix(*a, *b, *c, *d);
            *b = _mm256_permute4x64_epi64::<0b00_11_10_01>(*b);
            *c = _mm256_permute4x64_epi64::<0b01_00_11_10>(*c);
            *d = _mm256_permute4x64_epi64::<0b10_01_00_11>(*d);
            [*a, *b, *c, *d] = mix(*a, *b, *c, *d);
            *b = _mm256_permute4x64_epi64::<0b10_01_00_11>(*b);
            *c = _mm256_permute4x64_epi64::<0b01_00_11_10>(*c);
            *d = _mm256_permute4x64_epi64::<0b00_11_10_01>(*d);
        }
    }

    /// `P` of two columns at once, the vectors at this place of each row: half a row of the matrix for each column.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn permute_columns(&mut self, place: usize) {
        let [a0, a1, b0, b1, c0, c1, d0, d1] = array::from_fn(|row| self.0[4 * row + place]);
        let [a0, b0, c0, d0] = mix(a0, b0, c0, d0);
        let [a1, b1, c1, d1] = mix(a1, b1, c1, d1);
        // From columns to diagonals: the rows rotate by one word, by two, by three.
        let (b0, b1) = (_mm256_alignr_epi8::<8>(b1, b0), _mm256_alignr_epi8::<8>(b0, b1));
        let (c0, c1) = (c1, c0);
        let (d0, d1) = (_mm256_alignr_epi8::<8>(d0, d1), _mm256_alignr_epi8::<8>(d1, d0));
        let [a0, b0, c0, d0] = mix(a0, b0, c0, d0);
        let [a1, b1, c1, d1] = mix(a1, b1, c1, d1);
        let (b0, b1) = (_mm256_alignr_epi8::<8>(b0, b1), _mm256_alignr_epi8::<8>(b1, b0));
        let (c0, c1) = (c1, c0);
        let (d0, d1) = (_mm256_alignr_epi8::<8>(d1, d0), _mm256_alignr_epi8::<8>(d0, d1));
        for (row, x) in [a0, a1, b0, b1, c0, c1, d0, d1].into_iter().enumerate() {
            self.0[4 * row + place] = x;
        }
    }
}

/// `GB` (section 3.6) of four words of each vector at once.
#[inline]
#[target_feature(enable = "avx2")]
fn mix(mut a: __m256i, mut b: __m256i, mut c: __m256i, mut d: __m256i) -> [__m256i; 4] {
    a = add(a, b);
    d = turn::<32, 32>(_mm256_xor_si256(d, a));
    c = add(c, d);
    b = turn::<24, 40>(_mm256_xor_si256(b, c));
    a = add(a, b);
    d = turn::<16, 48>(_mm256_xor_si256(d, a));
    c = add(c, d);
    b = turn::<63, 1>(_mm256_xor_si256(b, c));
    [a, b, c, d]
}

/// `x + y + 2 * trunc(x) * trunc(y)`.
#[inline]
#[target_feature(enable = "avx2")]
fn add(x: __m256i, y: __m256i) -> __m256i {
    let product = _mm256_mul_epu32(x, y);
    _mm256_add_epi64(_mm256_add_epi64(x, y), _mm256_add_epi64(product, product))
}

/// Rotates each word right by `RIGHT` bits, which is left by the rest of 64.
#[inline]
#[target_feature(enable = "avx2")]
fn turn<const RIGHT: i32, const LEFT: i32>(x: __m256i) -> __m256i {
    const { assert!(RIGHT + LEFT == 64) };
    _mm256_or_si256(_mm256_srli_epi64::<RIGHT>(x), _mm256_slli_epi64::<LEFT>(x))
}

/// Has the processor fetch a block while it computes.
#[inline]
#[expect(unsafe_code, reason = "the instruction takes a pointer")]
fn prefetch(block: &Block) {
    for line in block.as_ref().as_chunks::<8>().0 {
        // SAFETY: this is only a hint, and the pointer is to memory of ours.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
    }
}

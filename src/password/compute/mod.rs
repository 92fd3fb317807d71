//! Computes Argon2 (RFC 9106, section 3), from all its inputs to the output.
//!
//! This uses the argon2 crate or, if the processor has AVX2, `avx2`, which takes two thirds of the time. Both give the
//! same output.

#[cfg(target_arch = "x86_64")]
mod avx2;

use argon2::{Algorithm, Argon2, Block, Error, Params, Version};

#[cfg(target_arch = "x86_64")]
use avx2::Avx2;

/// What goes into one hash.
pub(super) struct Inputs<'a> {
    pub(super) algorithm: Algorithm,
    pub(super) version: Version,
    pub(super) params: Params,
    /// A pepper, or empty.
    pub(super) secret: &'a [u8],
    pub(super) password: &'a [u8],
    /// At least 8 bytes.
    pub(super) salt: &'a [u8],
}

impl Inputs<'_> {
    /// Computes an output of 4 to 64 bytes, in as many blocks as the parameters say. Their contents before do not
    /// matter; their contents afterwards are secret.
    pub(super) fn hash_into(&self, output: &mut [u8], blocks: &mut [Block]) -> Result<(), Error> {
        // The crate is always optimised (`Cargo.toml`); our code only with the rest, which is not in development.
        #[cfg(target_arch = "x86_64")]
        if !cfg!(debug_assertions)
            && let Some(avx2) = Avx2::detect()
        {
            return avx2.hash_into(self, output, blocks);
        }
        self.hash_into_by_crate(output, blocks)
    }

    fn hash_into_by_crate(&self, output: &mut [u8], blocks: &mut [Block]) -> Result<(), Error> {
        Argon2::new_with_secret(self.secret, self.algorithm, self.version, self.params.clone())?
            .hash_password_into_with_memory(self.password, self.salt, output, blocks)
    }
}

#[cfg(test)]
mod tests {
    use argon2::{AssociatedData, ParamsBuilder};
    use proptest::prelude::*;

    use super::*;

    type Hash = fn(&Inputs<'_>, &mut [u8], &mut [Block]) -> Result<(), Error>;

    const BY_CRATE: Hash = |inputs, output, blocks| inputs.hash_into_by_crate(output, blocks);

    /// All implementations available here, by name.
    fn ways() -> Vec<(&'static str, Hash)> {
        let mut ways = vec![("crate", BY_CRATE)];
        #[cfg(target_arch = "x86_64")]
        match Avx2::detect() {
            Some(_) => ways.push(("AVX2", |inputs, output, blocks| {
                Avx2::detect().unwrap().hash_into(inputs, output, blocks)
            })),
            None => println!("NOT checked: Argon2 by AVX2, which this processor does not have"),
        }
        ways
    }

    fn params(memory_kib: u32, passes: u32, lanes: u32, data: &[u8]) -> Params {
        let mut params = ParamsBuilder::new();
        params.m_cost(memory_kib).t_cost(passes).p_cost(lanes).data(AssociatedData::new(data).unwrap());
        params.build().unwrap()
    }

    /// Memory that has held something else.
    fn used(params: &Params) -> Vec<Block> {
        let mut block = Block::new();
        block.as_mut().fill(0x0123_4567_89ab_cdef);
        vec![block; params.block_count() + 1]
    }

    fn output(hash: Hash, inputs: &Inputs<'_>, length: usize) -> Vec<u8> {
        let mut output = vec![0; length];
        hash(inputs, &mut output, &mut used(&inputs.params)).unwrap();
        output
    }

    fn agree(inputs: &Inputs<'_>, length: usize) {
        let expected = output(BY_CRATE, inputs, length);
        for (way, hash) in ways() {
            assert_eq!(output(hash, inputs, length), expected, "{way}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn all_ways_agree(
            algorithm in prop::sample::select(&[Algorithm::Argon2d, Algorithm::Argon2i, Algorithm::Argon2id][..]),
            version in prop::sample::select(&[Version::V0x10, Version::V0x13][..]),
            memory_kib in 8u32..100,
            passes in 1u32..4,
            lanes in 1u32..5,
            secret in prop::collection::vec(any::<u8>(), 0..70),
            password in prop::collection::vec(any::<u8>(), 0..300),
            salt in prop::collection::vec(any::<u8>(), 8..49),
            data in prop::collection::vec(any::<u8>(), 0..=32),
            length in 4usize..=64,
        ) {
            let params = params(memory_kib.max(8 * lanes), passes, lanes, &data);
            agree(
                &Inputs { algorithm, version, params, secret: &secret, password: &password, salt: &salt },
                length,
            );
        }
    }

    /// Segments about as long as the 128 addresses that are computed at a time, or longer.
    #[test]
    fn all_ways_agree_on_long_segments() {
        for (memory_kib, lanes) in [(511, 1), (512, 1), (516, 1), (1030, 2)] {
            let (algorithm, version) = (Algorithm::Argon2i, Version::V0x13);
            let params = params(memory_kib, 2, lanes, &[]);
            agree(
                &Inputs { algorithm, version, params, secret: &[], password: b"secret", salt: &[7; 16] },
                32,
            );
        }
    }

    /// RFC 9106, sections 5.1 to 5.3.
    #[test]
    fn test_vectors() {
        let table = [
            (Algorithm::Argon2d, "512b391b6f1162975371d30919734294f868e3be3984f3c1a13a4db9fabe4acb"),
            (Algorithm::Argon2i, "c814d9d1dc7f37aa13f0d77f2494bda1c8de6b016dd388d29952a4c4672b6ce8"),
            (Algorithm::Argon2id, "0d640df58d78766c08c037a34a8b53c9d01ef0452d75b65eb52520e96b01e659"),
        ];
        for (algorithm, expected) in table {
            let inputs = Inputs {
                algorithm,
                version: Version::V0x13,
                params: params(32, 3, 4, &[4; 12]),
                secret: &[3; 8],
                password: &[1; 32],
                salt: &[2; 16],
            };
            for (way, hash) in ways() {
                let hex: String =
                    output(hash, &inputs, 32).iter().map(|byte| format!("{byte:02x}")).collect();
                assert_eq!(hex, expected, "{way}");
            }
        }
    }

    #[test]
    fn too_little_memory_is_an_error() {
        let params = params(16, 1, 1, &[]);
        let (algorithm, version) = (Algorithm::Argon2id, Version::V0x13);
        let inputs = Inputs { algorithm, version, params, secret: &[], password: b"secret", salt: &[7; 16] };
        for (way, hash) in ways() {
            let result = hash(&inputs, &mut [0; 32], &mut [Block::new(); 15]);
            assert_eq!(result, Err(Error::MemoryTooLittle), "{way}");
        }
    }
}

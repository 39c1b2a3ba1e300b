//! The handshake: what it agrees on, and how it meets nonsense.

use crate::harness::{Client, export, handshake};
use crate::negotiate::{NegotiateError, Outcome};
use crate::protocol::{
    INIT_PASSWD, OPTION_MAGIC, OPTION_REPLY_MAGIC, client_flag, info, option, reply,
    transmission_flag,
};

const FIXED: u32 = client_flag::FIXED_NEWSTYLE | client_flag::NO_ZEROES;

impl Client {
    async fn greet(&mut self, flags: u32) {
        assert_eq!(self.u64().await, INIT_PASSWD);
        assert_eq!(self.u64().await, OPTION_MAGIC);
        assert_eq!(self.u16().await, 0b11);
        self.send(&flags.to_be_bytes()).await;
    }

    /// The type and data of the next reply to `option`.
    async fn option_reply(&mut self, option: u32) -> (u32, Vec<u8>) {
        assert_eq!(self.u64().await, OPTION_REPLY_MAGIC);
        assert_eq!(self.u32().await, option);
        let kind = self.u32().await;
        let length = self.u32().await as usize;
        (kind, self.bytes(length).await)
    }

    /// Sends an option and returns the type of its first reply.
    async fn ask(&mut self, option: u32, data: &[u8]) -> u32 {
        self.send(&option_bytes(option, data)).await;
        self.option_reply(option).await.0
    }
}

fn option_bytes(option: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

/// The data of INFO and GO.
fn wanted(name: &str, infos: &[u16]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend((infos.len() as u16).to_be_bytes());
    data.extend(infos.iter().flat_map(|info| info.to_be_bytes()));
    data
}

fn export_item(flags: u16) -> Vec<u8> {
    [
        &[0, 0][..],
        &export().size.to_be_bytes(),
        &flags.to_be_bytes(),
    ]
    .concat()
}

#[test]
fn go_tells_size_and_flags_and_enters_transmission() {
    let end = handshake(&export(), 4096, async |mut client| {
        client.greet(FIXED).await;
        client
            .send(&option_bytes(option::GO, &wanted("disk", &[])))
            .await;
        let flags = export().transmission_flags(false);
        let item = client.option_reply(option::GO).await;
        assert_eq!(item, (reply::INFO, export_item(flags)));
        assert_eq!(client.option_reply(option::GO).await, (reply::ACK, vec![]));
    });
    assert_eq!(end.unwrap(), Outcome::Transmit { structured: false });
}

#[test]
fn info_tells_what_was_asked_for_and_goes_on() {
    let end = handshake(&export(), 4096, async |mut client| {
        client.greet(FIXED).await;
        let all = wanted("", &[info::BLOCK_SIZE, info::NAME, info::DESCRIPTION, 77]);
        client.send(&option_bytes(option::INFO, &all)).await;
        let mut items = Vec::new();
        loop {
            match client.option_reply(option::INFO).await {
                (reply::INFO, item) => items.push(item),
                (kind, _) => break assert_eq!(kind, reply::ACK),
            }
        }
        let sizes = [0, 3, 0, 0, 0, 1, 0, 0, 16, 0, 2, 0, 0, 0];
        assert_eq!(items.len(), 4);
        assert!(items.contains(&sizes.to_vec()));
        assert!(items.contains(&b"\0\x01disk".to_vec()));
        assert!(items.contains(&b"\0\x02a test".to_vec()));
        assert_eq!(client.ask(option::ABORT, &[]).await, reply::ACK);
    });
    assert_eq!(end.unwrap(), Outcome::Left);
}

#[test]
fn list_names_the_export() {
    let end = handshake(&export(), 4096, async |mut client| {
        client.greet(FIXED).await;
        client.send(&option_bytes(option::LIST, &[])).await;
        let server = client.option_reply(option::LIST).await;
        assert_eq!(server, (reply::SERVER, b"\0\0\0\x04diska test".to_vec()));
        assert_eq!(client.option_reply(option::LIST).await.0, reply::ACK);
    });
    assert_eq!(end.unwrap(), Outcome::Left);
}

#[test]
fn structured_replies_are_agreed_on_and_bring_the_df_flag() {
    let end = handshake(&export(), 4096, async |mut client| {
        client.greet(FIXED).await;
        assert_eq!(client.ask(option::STRUCTURED_REPLY, &[]).await, reply::ACK);
        client
            .send(&option_bytes(option::GO, &wanted("", &[])))
            .await;
        let (_, item) = client.option_reply(option::GO).await;
        let flags = u16::from_be_bytes([item[10], item[11]]);
        assert_ne!(flags & transmission_flag::SEND_DF, 0);
        assert_eq!(client.option_reply(option::GO).await.0, reply::ACK);
    });
    assert_eq!(end.unwrap(), Outcome::Transmit { structured: true });
}

#[test]
fn export_name_pads_with_zeroes_unless_agreed_otherwise() {
    for (flags, padding) in [(FIXED, 0), (client_flag::FIXED_NEWSTYLE, 124), (0, 124)] {
        let end = handshake(&export(), 4096, async |mut client| {
            client.greet(flags).await;
            client
                .send(&option_bytes(option::EXPORT_NAME, b"disk"))
                .await;
            let rest = client.rest().await;
            assert_eq!(
                rest[..10],
                export_item(export().transmission_flags(false))[2..]
            );
            assert_eq!(rest[10..], vec![0; padding]);
        });
        assert_eq!(end.unwrap(), Outcome::Transmit { structured: false });
    }
}

#[test]
fn a_read_only_export_does_not_offer_to_write() {
    let export = crate::protocol::Export {
        read_only: true,
        ..export()
    };
    let flags = export.transmission_flags(true);
    use transmission_flag::*;
    assert_eq!(flags & (HAS_FLAGS | READ_ONLY), HAS_FLAGS | READ_ONLY);
    assert_eq!(flags & (SEND_TRIM | SEND_WRITE_ZEROES | SEND_FAST_ZERO), 0);
}

#[test]
fn an_unknown_option_is_refused_and_the_next_one_understood() {
    let end = handshake(&export(), 1 << 20, async |mut client| {
        client.greet(FIXED).await;
        // PEEK_EXPORT, STARTTLS, LIST_META_CONTEXT, SET_META_CONTEXT, EXTENDED_HEADERS,
        // and two nobody has heard of.
        for option in [4, 5, 9, 10, 11, 0, 0xffff_ffff] {
            let data = vec![0x5a; 64 << 10];
            assert_eq!(client.ask(option, &data).await, reply::ERR_UNSUP);
        }
        assert_eq!(client.ask(option::STRUCTURED_REPLY, &[]).await, reply::ACK);
    });
    assert_eq!(end.unwrap(), Outcome::Left);
}

#[test]
fn options_without_data_refuse_data() {
    let end = handshake(&export(), 4096, async |mut client| {
        client.greet(FIXED).await;
        for option in [option::LIST, option::STRUCTURED_REPLY] {
            assert_eq!(client.ask(option, &[0]).await, reply::ERR_INVALID);
        }
        // This one must ignore it.
        assert_eq!(client.ask(option::ABORT, &[0]).await, reply::ACK);
    });
    assert_eq!(end.unwrap(), Outcome::Left);
}

#[test]
fn malformed_info_and_go_are_refused_and_the_handshake_goes_on() {
    let mut name_too_long = wanted("disk", &[]);
    name_too_long[3] = 200;
    let mut huge_name = wanted("disk", &[]);
    huge_name[0] = 0xff;
    let mut more_infos_announced = wanted("disk", &[3]);
    more_infos_announced[9] = 2;
    let mut fewer_infos_announced = wanted("disk", &[3]);
    fewer_infos_announced[9] = 0;
    let mut half_an_info = wanted("disk", &[3]);
    half_an_info.pop();
    let half_an_info_too_many = [wanted("disk", &[3]), vec![0]].concat();
    let nul = wanted("di\0k", &[]);
    let mut not_utf8 = wanted("disk", &[]);
    not_utf8[4] = 0xff;
    let endless_name = wanted(&"n".repeat(4097), &[]);

    let bad = [
        vec![],
        vec![0; 3],
        name_too_long,
        huge_name,
        more_infos_announced,
        fewer_infos_announced,
        half_an_info,
        half_an_info_too_many,
        nul,
        not_utf8,
        endless_name,
    ];
    let end = handshake(&export(), 8192, async |mut client| {
        client.greet(FIXED).await;
        for data in bad {
            for option in [option::INFO, option::GO] {
                assert_eq!(client.ask(option, &data).await, reply::ERR_INVALID);
            }
        }
        for option in [option::INFO, option::GO] {
            let missing = wanted("nothing", &[]);
            assert_eq!(client.ask(option, &missing).await, reply::ERR_UNKNOWN);
            let too_big = vec![0xff; 32 << 10];
            assert_eq!(client.ask(option, &too_big).await, reply::ERR_TOO_BIG);
        }
        client
            .send(&option_bytes(option::GO, &wanted("disk", &[])))
            .await;
        client.option_reply(option::GO).await;
        assert_eq!(client.option_reply(option::GO).await.0, reply::ACK);
    });
    assert!(matches!(end, Ok(Outcome::Transmit { .. })));
}

#[test]
fn what_has_no_error_reply_ends_the_session() {
    // What the client says after the greeting, and how the handshake fails.
    let cut_off = |flags: u32, says: &[u8]| {
        handshake(&export(), 1 << 20, async |mut client| {
            client.greet(flags).await;
            client.send(says).await;
            assert!(client.rest().await.is_empty());
        })
        .unwrap_err()
    };
    use NegotiateError::*;
    assert!(matches!(cut_off(FIXED | 4, &[]), ClientFlags(7)));
    assert!(matches!(cut_off(1 << 31, &[]), ClientFlags(_)));
    assert!(matches!(cut_off(FIXED, &[0x5a; 16]), OptionMagic(_)));
    assert!(matches!(
        cut_off(0, &option_bytes(option::LIST, &[])),
        NotFixed(3)
    ));
    for length in [(64 << 10) + 1, u32::MAX] {
        let mut endless = option_bytes(77, &[]);
        endless[12..].copy_from_slice(&length.to_be_bytes());
        let error = cut_off(FIXED, &endless);
        assert!(matches!(error, OptionTooLong { option: 77, .. }));
    }
    let missing = option_bytes(option::EXPORT_NAME, b"nothing");
    assert!(matches!(cut_off(FIXED, &missing), UnknownExport(_)));
}

#[test]
fn haggling_has_an_end() {
    let end = handshake(&export(), 1 << 20, async |mut client| {
        client.greet(FIXED).await;
        for _ in 0..256 {
            assert_eq!(client.ask(77, &[]).await, reply::ERR_UNSUP);
        }
        assert!(client.rest().await.is_empty());
    });
    assert!(matches!(end, Err(NegotiateError::TooManyOptions)));
}

/// Whatever a client has said when it hangs up, the handshake ends, and fails exactly
/// when it was cut off inside a message.
#[test]
fn a_client_may_hang_up_after_any_byte() {
    let mut says = FIXED.to_be_bytes().to_vec();
    let mut boundaries = vec![0, says.len()];
    for (option, data) in [
        (77, b"data".to_vec()),
        (option::INFO, wanted("disk", &[3])),
        (option::LIST, vec![]),
    ] {
        says.extend(option_bytes(option, &data));
        boundaries.push(says.len());
    }
    for end in 0..says.len() {
        let outcome = handshake(&export(), 4096, async |mut client| {
            client.bytes(18).await;
            client.send(&says[..end]).await;
        });
        match outcome {
            Ok(outcome) => {
                assert_eq!(outcome, Outcome::Left);
                assert!(boundaries.contains(&end), "silent at {end}");
            }
            // The pipe is gone when an answer is due, too.
            Err(error) => assert!(matches!(error, NegotiateError::Io(_)), "{error}"),
        }
    }
}

#[test]
fn a_stream_that_carries_one_byte_at_a_time_is_enough() {
    let end = handshake(&export(), 1, async |mut client| {
        client.greet(FIXED).await;
        client
            .send(&option_bytes(option::GO, &wanted("disk", &[info::NAME])))
            .await;
        let mut kinds = Vec::new();
        while !kinds.contains(&reply::ACK) {
            kinds.push(client.option_reply(option::GO).await.0);
        }
        assert_eq!(kinds, [reply::INFO, reply::INFO, reply::ACK]);
    });
    assert!(matches!(end, Ok(Outcome::Transmit { .. })));
}

/// The first request may follow the handshake at once: it must still be in the stream.
#[test]
fn the_handshake_takes_no_byte_too_many() {
    let (mut ours, mut theirs) = crate::harness::pipe(4096);
    futures::executor::block_on(async {
        use futures::io::{AsyncReadExt, AsyncWriteExt};
        let mut says = FIXED.to_be_bytes().to_vec();
        says.extend(option_bytes(option::GO, &wanted("", &[])));
        says.extend(b"request");
        ours.write_all(&says).await.unwrap();
        let outcome = crate::negotiate::negotiate(&mut theirs, &export()).await;
        assert!(matches!(outcome, Ok(Outcome::Transmit { .. })));
        let mut next = [0; 7];
        theirs.read_exact(&mut next).await.unwrap();
        assert_eq!(&next, b"request");
    });
}

//! How far regions are from each other: real round trips, in milliseconds.
//!
//! Source: the median over one year of TCP round trips between regions of Amazon Web Services, as CloudPing (https://www.cloudping.co/grid/p_50/timeframe/1Y)
//! published it on 8 April 2022; the copy read is `generate_server_ping_latencies/all_latencies.json` of github.com/bc-computing/gus-automation. 18 of its 21
//! regions, the mean of both directions, rounded.

/// Its name, and where it is.
pub(crate) const REGIONS: [(&str, &str); 18] = [
    ("us-east-1", "Virginia"),
    ("us-east-2", "Ohio"),
    ("us-west-1", "California"),
    ("us-west-2", "Oregon"),
    ("ca-central-1", "Montreal"),
    ("sa-east-1", "Sao Paulo"),
    ("eu-west-1", "Dublin"),
    ("eu-west-2", "London"),
    ("eu-central-1", "Frankfurt"),
    ("eu-north-1", "Stockholm"),
    ("af-south-1", "Cape Town"),
    ("me-south-1", "Bahrain"),
    ("ap-south-1", "Mumbai"),
    ("ap-southeast-1", "Singapore"),
    ("ap-southeast-2", "Sydney"),
    ("ap-northeast-1", "Tokyo"),
    ("ap-northeast-2", "Seoul"),
    ("ap-east-1", "Hong Kong"),
];

/// The round trip between two regions, in milliseconds; on the diagonal, between two machines of one.
#[rustfmt::skip]
pub(crate) const ROUND_TRIP_MILLIS: [[u64; REGIONS.len()]; REGIONS.len()] = [
    [  5,  15,  63,  70,  16, 116,  68,  77,  91, 110, 223, 190, 188, 214, 199, 146, 175, 196],
    [ 15,   5,  53,  52,  27, 127,  78,  87, 101, 121, 234, 205, 198, 200, 189, 133, 161, 183],
    [ 63,  53,   2,  22,  80, 177, 139, 146, 151, 173, 293, 260, 233, 177, 139, 108, 137, 155],
    [ 70,  52,  22,   3,  66, 180, 124, 133, 146, 163, 279, 247, 223, 168, 141,  99, 126, 145],
    [ 16,  27,  80,  66,   3, 127,  71,  79,  92, 109, 230, 201, 190, 211, 198, 144, 173, 195],
    [116, 127, 177, 180, 127,   4, 179, 189, 205, 218, 337, 313, 302, 324, 313, 258, 286, 308],
    [ 68,  78, 139, 124,  71, 179,   2,  13,  26,  43, 160, 136, 123, 181, 257, 202, 230, 222],
    [ 77,  87, 146, 133,  79, 189,  13,   2,  17,  33, 150, 126, 114, 171, 266, 210, 239, 211],
    [ 91, 101, 151, 146,  92, 205,  26,  17,   3,  23, 164, 118, 122, 157, 268, 225, 231, 198],
    [110, 121, 173, 163, 109, 218,  43,  33,  23,   4, 181, 138, 142, 177, 296, 245, 254, 218],
    [223, 234, 293, 279, 230, 337, 160, 150, 164, 181,   8, 161, 165, 214, 414, 360, 388, 259],
    [190, 205, 260, 247, 201, 313, 136, 126, 118, 138, 161,   2,  39,  88, 181, 165, 163, 128],
    [188, 198, 233, 223, 190, 302, 123, 114, 122, 142, 165,  39,   2,  60, 149, 132, 131,  98],
    [214, 200, 177, 168, 211, 324, 181, 171, 157, 177, 214,  88,  60,   2,  94,  74,  75,  41],
    [199, 189, 139, 141, 198, 313, 257, 266, 268, 296, 414, 181, 149,  94,   3, 111, 147, 134],
    [146, 133, 108,  99, 144, 258, 202, 210, 225, 245, 360, 165, 132,  74, 111,   4,  35,  53],
    [175, 161, 137, 126, 173, 286, 230, 239, 231, 254, 388, 163, 131,  75, 147,  35,   2,  38],
    [196, 183, 155, 145, 195, 308, 222, 211, 198, 218, 259, 128,  98,  41, 134,  53,  38,   2],
];

# The least that makes Varnish a cache of values: all of them fresh for a day, those that are not there, too.
vcl 4.1;

backend files {
    .host = "127.0.0.1";
    .port = "{UPSTREAM}";
}

sub vcl_recv {
    return (hash);
}

sub vcl_backend_response {
    set beresp.ttl = 1d;
    return (deliver);
}

sub vcl_deliver {
    if (obj.hits > 0) {
        set resp.http.X-Cache = "HIT";
    } else {
        set resp.http.X-Cache = "MISS";
    }
}

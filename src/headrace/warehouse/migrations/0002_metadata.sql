-- Metadata: what is known about plants and machines beside their events. Unforeseen keys live in `attributes`.
CREATE TABLE factory (
    id         text PRIMARY KEY,
    name       text,
    location   text,
    attributes jsonb NOT NULL DEFAULT '{}'
);

CREATE TABLE machine (
    id         text PRIMARY KEY,
    factory    text,
    kind       text,
    attributes jsonb NOT NULL DEFAULT '{}'
);

CREATE TABLE maintenance_criterion (
    id          text PRIMARY KEY,
    requirement text,
    field       text,
    comparison  text,
    threshold   double precision,
    attributes  jsonb NOT NULL DEFAULT '{}'
);

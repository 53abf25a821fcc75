-- Entities: one row per event of a machine, and one per window that a job computed about it. Rows of one machine lie
-- together: in one of eight partitions here, on one worker where the Citus extension is installed.
CREATE TABLE consumer (
    producer  text PRIMARY KEY,
    epoch     bigint NOT NULL,
    positions jsonb NOT NULL DEFAULT '[]',
    updated   timestamptz NOT NULL DEFAULT now()
);

DO $$
DECLARE
    citus boolean := EXISTS (SELECT FROM pg_extension WHERE extname = 'citus');
    spread text := CASE WHEN citus THEN '' ELSE ' PARTITION BY HASH (machine_id)' END;
    wanted text;
BEGIN
    EXECUTE 'CREATE TABLE machine_telemetry (
        machine_id    text NOT NULL,
        event_id      text NOT NULL,
        event_type    text NOT NULL,
        site          text,
        enqueued      timestamptz NOT NULL,
        event         jsonb NOT NULL,
        stream        text NOT NULL,
        log_partition integer NOT NULL,
        log_offset    bigint NOT NULL,
        PRIMARY KEY (machine_id, event_id)
    )' || spread;
    EXECUTE 'CREATE TABLE maintenance_aggregate (
        window_end    timestamptz NOT NULL,
        requirement   text,
        factory       text,
        machine_id    text NOT NULL,
        measures      jsonb NOT NULL,
        event_id      text NOT NULL,
        stream        text NOT NULL,
        log_partition integer NOT NULL,
        log_offset    bigint NOT NULL,
        PRIMARY KEY (machine_id, event_id)
    )' || spread;
    FOREACH wanted IN ARRAY ARRAY['machine_telemetry', 'maintenance_aggregate'] LOOP
        IF citus THEN
            PERFORM create_distributed_table(wanted::regclass, 'machine_id');
        ELSE
            FOR part IN 0..7 LOOP
                EXECUTE format('CREATE TABLE %I PARTITION OF %I FOR VALUES WITH (MODULUS 8, REMAINDER %s)',
                               wanted || '_' || part, wanted, part);
            END LOOP;
        END IF;
    END LOOP;
END $$;

CREATE INDEX machine_telemetry_time ON machine_telemetry (machine_id, enqueued);
CREATE INDEX maintenance_aggregate_time ON maintenance_aggregate (machine_id, window_end);

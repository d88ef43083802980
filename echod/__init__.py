"""echod: an echo daemon (RFC 862) that can be trusted as the far end of a test.

The core decides, the net acts, the process lives; facts go out as events.

    supervisor ◄── signals, configuration
        │ channel: assignments and descriptors down, answers up
        ├── worker ─┐
        └── worker ─┴─ one loop each: poller → handler → connection, and back to the socket

Rooms, each of which may import only from those before it:

    errors events    kinds of failure with their exit codes; the catalogue of facts that echod reports
    config/          what the operator asked for: models, reading, loading, dumping, plan; unit and manual ship
    core/            decides, pure: lifecycle, connection, proxy, tls, exchange, datagrams, injection, access, …
    net/             acts, sockets only: poller, reactor, sockets, stream, proxied, secured, datagram, listener, admin
    observe/         what others see: sink, log, cap, ecs, schema, journal; scoreboard, addresses, tally, metrics, pages
                     (beside net/, neither imports the other)
    process/         lives: supervisor, worker and all that a daemon owes to the system
    cli              arguments to a command, outcome to an exit code

Reading order: events, core/lifecycle, core/connection, net/reactor, net/stream, process/supervisor; then what you are
curious about.

Every descriptor has one owner, who closes it. No module has state of its own.
"""

__version__ = "0.1.0"

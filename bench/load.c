/* The load: keeps connections of an echo server busy, compares every byte, and counts.
 *
 *     load PORT CONNECTIONS SIZE DEPTH SECONDS MESSAGES IDLE CHURN [PID...]
 *
 * Each connection has DEPTH messages of SIZE bytes in flight. Ends after SECONDS, or after MESSAGES if that is not 0. IDLE
 * connections more are opened first and left alone. With CHURN, each connection carries one message and is replaced.
 * Writes one JSON object: messages, seconds, the CPU seconds of the load itself and of the processes PID, and for a single
 * message in flight the round trip's percentiles. A byte that is wrong ends it with status 1 and a word why.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define PERIOD 65537 /* a prime: whatever the sizes are, positions in the pattern do not repeat with them */
#define BUFFER (1024 * 1024)
#define SAMPLES (4 * 1024 * 1024)
#define WARM_UP 0.05 /* seconds before the count begins, or longer, until every connection has had an answer */

struct connection {
    int fd;
    long number, sent, received; /* bytes */
};

static struct sockaddr_in server = {.sin_family = AF_INET};
static char pattern[PERIOD + BUFFER], buffer[BUFFER];
static unsigned samples[SAMPLES];
static long size, depth, sampled, numbers;
static int poller;

static void fail(const char *what)
{
    fprintf(stderr, "load: %s%s%s\n", what, errno ? ": " : "", errno ? strerror(errno) : "");
    exit(1);
}

static double seconds(clockid_t clock)
{
    struct timespec now;

    if (clock_gettime(clock, &now))
        return 0;
    return now.tv_sec + now.tv_nsec / 1e9;
}

static double cpu_of(char **pids)
{
    double sum = 0;
    clockid_t clock;

    for (; *pids; pids++)
        if (!clock_getcpuclockid(atoi(*pids), &clock))
            sum += seconds(clock);
    return sum;
}

static int connected(void)
{
    int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);

    if (fd < 0 || connect(fd, (struct sockaddr *)&server, sizeof server))
        fail("connect");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    fcntl(fd, F_SETFL, O_NONBLOCK);
    return fd;
}

static void fill(struct connection *c)
{
    long wanted = (c->received / size + depth) * size - c->sent;

    while (wanted > 0) {
        long start = (c->number * 7919 + c->sent) % PERIOD;
        ssize_t count = send(c->fd, pattern + start, wanted < BUFFER ? wanted : BUFFER, MSG_NOSIGNAL);
        if (count < 0) {
            if (errno == EAGAIN) /* what comes back next makes room */
                return;
            fail("send");
        }
        c->sent += count;
        wanted -= count;
    }
}

static void begin(struct connection *c)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};

    c->fd = connected();
    c->number = numbers++;
    c->sent = c->received = 0;
    if (epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &event))
        fail("epoll_ctl");
    fill(c);
}

/* Receive and compare; return how many messages became whole. */
static long take(struct connection *c)
{
    long before = c->received / size, start = (c->number * 7919 + c->received) % PERIOD;
    ssize_t count = recv(c->fd, buffer, BUFFER, 0);

    if (count < 0)
        fail("recv");
    errno = 0;
    if (!count)
        fail("the server ended a connection");
    if (c->received + count > c->sent || memcmp(buffer, pattern + start, count))
        fail("the server sent something else than it had received");
    c->received += count;
    return c->received / size - before;
}

static int answered(const struct connection *all, int active)
{
    for (int i = 0; i < active; i++)
        if (!all[i].received)
            return 0;
    return 1;
}

static int ascending(const void *a, const void *b)
{
    unsigned x = *(const unsigned *)a, y = *(const unsigned *)b;

    return (x > y) - (x < y);
}

static long run(struct connection *all, int active, int churn, double until, long most)
{
    struct epoll_event events[256];
    int single = active * depth == 1 && !churn;
    double sent_at = seconds(CLOCK_MONOTONIC), now = sent_at;
    long messages = 0;

    while (most ? messages < most : now < until) {
        int ready = epoll_wait(poller, events, 256, 10000);
        if (ready <= 0)
            fail("nothing came back for ten seconds");
        now = seconds(CLOCK_MONOTONIC);
        for (int i = 0; i < ready; i++) {
            struct connection *c = events[i].data.ptr;
            long whole = take(c);
            messages += whole;
            if (single && whole) {
                if (sampled < SAMPLES)
                    samples[sampled++] = (now - sent_at) * 1e9;
                sent_at = seconds(CLOCK_MONOTONIC);
            }
            if (churn && whole) {
                close(c->fd);
                begin(c);
            } else if (!most || messages + active * depth <= most || !whole)
                fill(c);
        }
    }
    (void)all;
    return messages;
}

int main(int argc, char **argv)
{
    if (argc < 9) {
        fprintf(stderr, "load: PORT CONNECTIONS SIZE DEPTH SECONDS MESSAGES IDLE CHURN [PID...]\n");
        return 2;
    }
    int active = atoi(argv[2]), idle = atoi(argv[7]), churn = atoi(argv[8]);
    double duration = atof(argv[5]), start, own, theirs;
    long messages, most = atol(argv[6]);
    struct connection *all = calloc(active, sizeof *all);
    struct rlimit files;

    server.sin_port = htons(atoi(argv[1]));
    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    size = atol(argv[3]);
    depth = atol(argv[4]);
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    for (long i = 0; i < PERIOD + BUFFER; i++)
        pattern[i] = i < PERIOD ? random() : pattern[i - PERIOD];
    poller = epoll_create1(0);
    for (int i = 0; i < idle; i++)
        connected();
    for (int i = 0; i < active; i++)
        begin(&all[i]);
    if (!most)
        do
            run(all, active, churn, seconds(CLOCK_MONOTONIC) + WARM_UP, 0);
        while (!churn && !answered(all, active));
    sampled = 0;
    start = seconds(CLOCK_MONOTONIC);
    own = seconds(CLOCK_PROCESS_CPUTIME_ID);
    theirs = cpu_of(argv + 9);
    messages = run(all, active, churn, start + duration, most);
    theirs = cpu_of(argv + 9) - theirs;
    own = seconds(CLOCK_PROCESS_CPUTIME_ID) - own;
    qsort(samples, sampled, sizeof *samples, ascending);
    printf("{\"messages\": %ld, \"seconds\": %.6f, \"load_cpu\": %.6f, \"server_cpu\": %.6f", messages,
           seconds(CLOCK_MONOTONIC) - start, own, theirs);
    if (sampled)
        printf(", \"p50\": %.3f, \"p99\": %.3f", samples[sampled / 2] / 1e3, samples[sampled * 99 / 100] / 1e3);
    printf("}\n");
    return 0;
}

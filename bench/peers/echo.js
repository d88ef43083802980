// A server of node that echoes, without logs or limits. `node echo.js PORT`
require("net")
  .createServer({ noDelay: true }, (socket) => {
    socket.on("error", () => socket.destroy());
    socket.pipe(socket);
  })
  .listen({ port: Number(process.argv[2]), host: "127.0.0.1", backlog: 4096 });

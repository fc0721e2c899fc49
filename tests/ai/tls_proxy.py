"""TLS in front of a plain server.

usage: tls_proxy.py PORT TO_PORT FOLDER    (cert.pem and key.pem are in the folder)
"""
import socket
import ssl
import sys
import threading

port, to_port, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(f"{folder}/cert.pem", f"{folder}/key.pem")


def carry(source, sink):
    try:
        while piece := source.recv(65536):
            sink.sendall(piece)
    except OSError:
        pass
    for end in (source, sink):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


def serve(raw):
    try:
        client = context.wrap_socket(raw, server_side=True)
        server = socket.create_connection(("127.0.0.1", to_port))
    except OSError:
        return raw.close()
    threading.Thread(target=carry, args=(client, server), daemon=True).start()
    carry(server, client)


with socket.create_server(("127.0.0.1", port)) as listener:
    while True:
        threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

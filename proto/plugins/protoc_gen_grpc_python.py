"""A protoc plugin that writes grpcio stubs, so that buf can call what grpcio-tools only offers as a built-in."""

import sys
import tempfile
from pathlib import Path

from google.protobuf.compiler import plugin_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc


def generate(request: plugin_pb2.CodeGeneratorRequest) -> plugin_pb2.CodeGeneratorResponse:
    """Run protoc's built-in grpc_python generator on the request's files."""
    response = plugin_pb2.CodeGeneratorResponse(
        supported_features=plugin_pb2.CodeGeneratorResponse.FEATURE_PROTO3_OPTIONAL
    )
    with tempfile.TemporaryDirectory() as scratch:
        descriptors = Path(scratch, "in.binpb")
        out = Path(scratch, "out")
        out.mkdir()
        descriptors.write_bytes(FileDescriptorSet(file=request.proto_file).SerializeToString())
        arguments = ["protoc", f"--descriptor_set_in={descriptors}", f"--grpc_python_out={out}"]
        if protoc.main(arguments + list(request.file_to_generate)) != 0:
            response.error = "grpc_python failed; see above"
            return response
        for path in sorted(out.rglob("*_grpc.py")):
            source = path.with_name(path.name.removesuffix("_pb2_grpc.py") + ".proto").relative_to(out)
            descriptor = next(f for f in request.proto_file if f.name == str(source))
            if descriptor.service:  # files without services would give empty modules
                response.file.add(name=str(path.relative_to(out)), content=path.read_text())
    return response


if __name__ == "__main__":
    incoming = plugin_pb2.CodeGeneratorRequest.FromString(sys.stdin.buffer.read())
    sys.stdout.buffer.write(generate(incoming).SerializeToString())

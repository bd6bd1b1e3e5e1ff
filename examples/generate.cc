// Asks a router one question and prints the answer as it streams.
//
// docs/clients.md says how to build it; generate [ADDRESS] [QUESTION]
#include <chrono>
#include <iostream>
#include <string>

#include <grpcpp/grpcpp.h>

#include "pagestream/router/v1/router.grpc.pb.h"

namespace router = pagestream::router::v1;

int main(int argc, char** argv) {
  const std::string address = argc > 1 ? argv[1] : "127.0.0.1:50050";
  const std::string question = argc > 2 ? argv[2] : "introduce yourself";

  router::GenerateRequest request;
  auto* message = request.mutable_chat()->add_messages();
  message->set_role("user");
  message->set_content(question);
  request.mutable_sampling_params()->set_temperature(0.6);
  request.mutable_sampling_params()->set_max_tokens(256);

  const auto channel = grpc::CreateChannel(address, grpc::InsecureChannelCredentials());
  const auto stub = router::RouterService::NewStub(channel);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(1));
  const auto reader = stub->Generate(&context, request);
  router::GenerateResponse response;
  while (reader->Read(&response)) std::cout << response.text() << std::flush;
  const grpc::Status status = reader->Finish();
  if (!status.ok()) {
    std::cerr << address << ": " << status.error_message() << '\n';
    return 1;
  }
  std::cout << '\n';
}

// Nine tasks against a klein server, one line each: main HOST:PORT
#include <google/protobuf/stubs/common.h>
#include <grpcpp/grpcpp.h>
#include <openssl/sha.h>

#include <chrono>
#include <functional>
#include <iostream>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "klein/v1/image.grpc.pb.h"

namespace pb = klein::v1;
using Health = grpc::health::v1::Health;
using Said = std::pair<std::string, bool>;  // what a task saw, and whether that is right
using Events = std::unique_ptr<grpc::ClientReader<pb::ImageEvent>>;

// All that one stream brought.
struct Drawing {
  grpc::Status status;
  pb::Accepted accepted;
  std::vector<pb::Preview> previews;
  pb::ImageHeader header;
  std::string image;
  pb::Completed completed;
};

// A context whose call ends after this time.
std::unique_ptr<grpc::ClientContext> within(std::chrono::milliseconds time = std::chrono::minutes(2)) {
  auto context = std::make_unique<grpc::ClientContext>();
  context->set_deadline(std::chrono::system_clock::now() + time);
  return context;
}

void check(const grpc::Status& status) {
  if (!status.ok()) throw std::runtime_error(std::to_string(status.error_code()) + " " + status.error_message());
}

std::string sha256(const std::string& data) {
  std::string hash(SHA256_DIGEST_LENGTH, '\0');
  SHA256(reinterpret_cast<const unsigned char*>(data.data()), data.size(), reinterpret_cast<unsigned char*>(&hash[0]));
  return hash;
}

// Takes a stream to its end, calls on_preview after each preview, and checks order, length and hash.
Drawing read(Events events, const std::function<void()>& on_preview = [] {}) {
  Drawing got;
  pb::ImageEvent event;
  for (uint32_t sequence = 0; events->Read(&event); ++sequence) {
    if (event.sequence() != sequence) throw std::runtime_error("an event is out of order");
    switch (event.event_case()) {
      case pb::ImageEvent::kAccepted: got.accepted = event.accepted(); break;
      case pb::ImageEvent::kPreview: got.previews.push_back(event.preview()); on_preview(); break;
      case pb::ImageEvent::kImageHeader: got.header = event.image_header(); break;
      case pb::ImageEvent::kImageChunk: got.image += event.image_chunk().data(); break;
      case pb::ImageEvent::kCompleted: got.completed = event.completed(); break;
      default: break;
    }
  }
  got.status = events->Finish();
  if (got.status.ok() && (got.image.size() != got.header.size_bytes() || sha256(got.image) != got.header.sha256()))
    throw std::runtime_error("the image does not have the header's length and hash");
  return got;
}

class Client {
 public:
  explicit Client(const std::string& target)
      : channel_(grpc::CreateChannel(target, grpc::InsecureChannelCredentials())),
        images_(pb::ImageService::NewStub(channel_)),
        health_(Health::NewStub(channel_)) {}

  Said health() {
    grpc::health::v1::HealthCheckResponse answer;
    check(health_->Check(within().get(), grpc::health::v1::HealthCheckRequest(), &answer));
    const bool serves = answer.status() == grpc::health::v1::HealthCheckResponse::SERVING;
    return {grpc::health::v1::HealthCheckResponse::ServingStatus_Name(answer.status()), serves};
  }

  Said capabilities() {
    pb::GetCapabilitiesResponse answer;
    check(images_->GetCapabilities(within().get(), pb::GetCapabilitiesRequest(), &answer));
    return {answer.model(), !answer.model().empty() && answer.chunk_bytes() <= 1 << 20};
  }

  Said generate() {
    const uint64_t seed = std::numeric_limits<uint64_t>::max();
    pb::ImageOptions options = sized(128, 128, 4);
    options.set_seed(seed);
    options.mutable_output()->set_format(pb::IMAGE_FORMAT_WEBP);
    const Drawing got = draw(options);
    check(got.status);
    made_ = got.image;
    const size_t told = got.previews.size() + got.completed.previews_skipped();
    const bool is_jpeg = got.previews.at(0).data().rfind("\xff\xd8", 0) == 0;
    return {std::to_string(got.previews.size()) + " previews", told == 4 && is_jpeg && got.accepted.seed() == seed};
  }

  Said edit() {
    pb::EditRequest request;
    request.set_prompt("make it green");
    request.add_references()->set_image(made_);
    request.mutable_options()->set_steps(2);
    const auto context = within();
    const Drawing got = read(images_->Edit(context.get(), request));
    check(got.status);
    const pb::Size& size = got.accepted.reference_sizes(0);
    return {"of " + std::to_string(size.width()) + "×" + std::to_string(size.height()), size.width() == 128};
  }

  Said large() {
    pb::ImageOptions options = sized(1040, 1024, 1);
    options.mutable_output()->set_format(pb::IMAGE_FORMAT_RAW_RGBA);
    options.mutable_preview()->set_disabled(true);
    const Drawing got = draw(options);
    check(got.status);
    return {std::to_string(got.image.size()) + " bytes", got.image.size() == 1040 * 1024 * 4};
  }

  Said png() {
    const Drawing got = draw(sized(96, 64, 1));
    check(got.status);
    const bool is_png = got.image.rfind("\x89PNG\r\n\x1a\n", 0) == 0;
    const std::string size("\0\0\0\x60\0\0\0\x40", 8);  // 96 and 64, big endian
    return {got.header.mime_type(), is_png && got.image.substr(16, 8) == size};
  }

  Said cancel() {
    const auto context = within();
    const Drawing got = read(images_->Generate(context.get(), request(sized(256, 256, 50))), [&] { context->TryCancel(); });
    return {got.status.error_message(), got.status.error_code() == grpc::StatusCode::CANCELLED};
  }

  Said bad_field() {
    const Drawing got = draw(sized(100, 128, 0));
    google::rpc::Status status;
    status.ParseFromString(got.status.error_details());
    google::rpc::ErrorInfo info;
    google::rpc::BadRequest bad;
    for (const auto& detail : status.details()) {
      if (detail.Is<google::rpc::ErrorInfo>()) detail.UnpackTo(&info);
      if (detail.Is<google::rpc::BadRequest>()) detail.UnpackTo(&bad);
    }
    const std::string field = bad.field_violations_size() ? bad.field_violations(0).field() : "";
    const bool is_invalid = got.status.error_code() == grpc::StatusCode::INVALID_ARGUMENT;
    return {info.reason() + " " + field, is_invalid && info.reason() == "INVALID_FIELD" && field == "options.width"};
  }

  Said deadline() {
    const Drawing got = draw(sized(1024, 1024, 50), std::chrono::milliseconds(500));
    return {got.status.error_message(), got.status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED};
  }

 private:
  static pb::ImageOptions sized(uint32_t width, uint32_t height, uint32_t steps) {
    pb::ImageOptions options;
    options.set_width(width);
    options.set_height(height);
    options.set_steps(steps);
    return options;
  }

  static pb::GenerateRequest request(const pb::ImageOptions& options) {
    pb::GenerateRequest request;
    request.set_prompt("a large red circle");
    *request.mutable_options() = options;
    return request;
  }

  Drawing draw(const pb::ImageOptions& options, std::chrono::milliseconds time = std::chrono::minutes(2)) {
    const auto context = within(time);
    return read(images_->Generate(context.get(), request(options)));
  }

  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<pb::ImageService::Stub> images_;
  std::unique_ptr<Health::Stub> health_;
  std::string made_;  // the image that Edit gets as its reference
};

int main(int, char** arguments) {
  Client client(arguments[1]);
  std::cout << "versions grpc++ " << grpc::Version() << ", protobuf "
            << google::protobuf::internal::VersionString(GOOGLE_PROTOBUF_VERSION) << std::endl;
  const std::vector<std::pair<std::string, Said (Client::*)()>> tasks = {
      {"health", &Client::health}, {"capabilities", &Client::capabilities}, {"generate", &Client::generate},
      {"edit", &Client::edit},     {"large", &Client::large},               {"png", &Client::png},
      {"cancel", &Client::cancel}, {"bad_field", &Client::bad_field},       {"deadline", &Client::deadline},
  };
  for (const auto& [name, task] : tasks) {
    try {
      const auto [said, is_right] = (client.*task)();
      std::cout << name << (is_right ? " ok " : " FAILED not as expected: ") << said << std::endl;
    } catch (const std::exception& error) {
      std::cout << name << " FAILED " << error.what() << std::endl;
    }
  }
}
